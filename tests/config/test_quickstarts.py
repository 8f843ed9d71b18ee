"""Everything that users have read works: the printed configs, data files and options, and our own examples.

Reads the quickstart texts beside the repository; without them, only the examples are tested.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from longcat_tune.cli import build_app
from longcat_tune.config.foreign import CONFIG_KEYS
from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.config.run import keys

REPOSITORY = Path(__file__).parents[2]
QUICKSTARTS = REPOSITORY.parent / "shared" / "quickstarts"

pytestmark = pytest.mark.skipif(not QUICKSTARTS.is_dir(), reason="the quickstart texts are not here")


def texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(QUICKSTARTS.glob("*.txt"))]


def blocks(opening: str) -> list[str]:
    """Printed JSON that begins with a brace or a bracket."""
    found = [block for text in texts() for block in re.findall(r"```jsonc?\n(.*?)```", text, flags=re.DOTALL)]
    return [block for block in found if block.lstrip().startswith(opening)]


def printed_options() -> Iterator[list[str]]:
    """Runs of `--key value` in the texts."""
    for text in texts():
        for code in re.findall(r"`([^`\n]*--\w[^`\n]*)`", text):
            yield shlex.split(code)


def test_the_texts_hold_what_is_tested_here():
    assert (len(blocks("{")), len(blocks("["))) == (5, 2)
    assert len(list(printed_options())) >= 3


def test_every_printed_config_parses_unchanged(tmp_path):
    for block in blocks("{"):
        (tmp_path / "config.json").write_text(block, encoding="utf-8")
        config = load_run_config(tmp_path / "config.json", {})
        assert config.flat()["lora_rank"] == 8
        assert config.validation.validation_resolution[0].described == "480 wide x 832 high (portrait)"


def test_every_printed_data_file_parses_unchanged(tmp_path):
    config = load_run_config(None, {"data_backend_config": "multidatabackend.json"})
    for block in blocks("["):
        (tmp_path / "multidatabackend.json").write_text(block, encoding="utf-8")
        train, conditioning = load_datasets(config, config_dir=tmp_path)
        assert (train.is_i2v, train.conditioning_data) == (True, (conditioning.id,))
        assert (train.video.num_frames, conditioning.caption_strategy) == (93, None)


def test_every_printed_command_exists():
    commands = {
        word for text in texts() for word in re.findall(r"^simpletuner ([\w-]+)", text, flags=re.MULTILINE)
    }
    assert commands == {"server", "train"}
    assert commands <= typer.main.get_command(build_app([])).commands.keys()


def test_every_printed_option_is_known():
    for words in printed_options():
        names = {word.removeprefix("--") for word in words if word.startswith("--")}
        assert names <= keys().keys() | {"config"}, words


def test_the_printed_group_offload_options_are_typed():
    overrides = {
        "enable_group_offload": "true",
        "group_offload_type": "block_level",
        "group_offload_blocks_per_group": "1",
    }
    memory = load_run_config(None, overrides).memory
    assert memory.enable_group_offload is True
    assert (memory.group_offload_type, memory.group_offload_blocks_per_group) == ("block_level", 1)


def test_every_key_that_the_texts_name_is_known():
    code = {name for text in texts() for name in re.findall(r"`(\w+_\w+)(?::[^`]*|=[^`]*)?`", text)}
    elsewhere = {"aspect_ratio", "resolution_frames", "longcat_video"} | {
        "bucket_strategy", "conditioning_data", "dataset_type", "frame_interval", "is_i2v", "num_frames",
    }  # fmt: skip
    assert code - elsewhere <= keys().keys() | CONFIG_KEYS.aliases.keys()
