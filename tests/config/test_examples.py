"""The examples to copy work as they are, and docs/config.md says what the schema says."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import get_args

from longcat_tune.config import describe
from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.config.run import RunConfig, keys, require_training_length

REPOSITORY = Path(__file__).parents[2]


def copied(folder: Path) -> Path:
    for name in ("config.json", "multidatabackend.json"):
        shutil.copy(REPOSITORY / "config" / f"{name}.example", folder / name)
    return folder / "config.json"


def test_the_examples_work_as_they_are(tmp_path):
    config = load_run_config(copied(tmp_path), {})
    require_training_length(config)
    [entry] = load_datasets(config, config_dir=tmp_path)
    assert (entry.id, entry.dataset_type, entry.instance_data_dir) == (
        "my-clips",
        "video",
        Path("/data/my-clips"),
    )


def test_the_example_shows_defaults_except_where_a_run_must_choose(tmp_path):
    config, default = load_run_config(copied(tmp_path), {}).flat(), RunConfig().flat()
    assert {key for key, value in config.items() if value != default[key]} == {
        "data_backend_config",
        "max_train_steps",
        "checkpoint_step_interval",
        "validation_step_interval",
        "validation_prompt",
    }


def test_the_commented_entries_work_too(tmp_path):
    copied(tmp_path)
    data = tmp_path / "multidatabackend.json"
    text = data.read_text(encoding="utf-8").replace("/*", "").replace("*/", "")
    data.write_text(re.sub(r'// (?="(?:is_i2v|conditioning_data)")', "", text), encoding="utf-8")
    config = load_run_config(tmp_path / "config.json", {"eval_dataset_id": "my-validation-clips"})
    train, images, held_out = load_datasets(config, config_dir=tmp_path)
    assert train.conditioning_data == (images.id,)
    assert held_out.dataset_type == "eval"


def test_objects_are_described_by_their_keys():
    fields = DatasetEntry.model_fields
    assert describe.accepts(fields["task_mix"]) == "object with t2v, i2v, continuation"
    assert describe.accepts(fields["caption_table"]) == (
        "object with path, filename_column, caption_column, fallback_caption_column"
    )
    assert (describe.kind(fields["video"]), describe.default(fields["caption_table"])) == ("object", "null")


def test_the_page_says_of_every_path_where_it_is_looked_for():
    page = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    told = page.partition("## Paths")[2].partition("##")[0]
    paths = {
        key for key, (_, field) in keys().items() if Path in {field.annotation, *get_args(field.annotation)}
    }
    assert len(paths) > 5
    assert {key for key in paths if f"`{key}`" not in told} == set()


def test_the_page_of_keys_is_fresh():
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_config_docs.py"))
    page = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run: python scripts/make_config_docs.py"
