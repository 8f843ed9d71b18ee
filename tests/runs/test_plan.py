"""Every file is accounted for, and steps are counted as the surface says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from longcat_tune.data.demo import demo_scenes, render
from longcat_tune.data.video import write_mp4
from longcat_tune.errors import DataError
from longcat_tune.runs.plan import make_plan, plan_renders
from longcat_tune.runs.report import accounting_lines, plan_report
from tests.builders import make_clips, make_run, video_entry


@pytest.mark.parametrize(("batch", "accumulation", "repeats"), [(1, 1, 0), (2, 1, 0), (2, 3, 1), (4, 2, 2)])
def test_steps_per_epoch(tmp_path: Path, batch: int, accumulation: int, repeats: int) -> None:
    square = make_clips(tmp_path / "square", 3)
    wide = make_clips(tmp_path / "wide", 2, size=(128, 64))
    config = make_run(
        tmp_path,
        [video_entry(square, repeats=repeats), video_entry(wide, id="wide")],
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_train_steps=None,
        num_train_epochs=2,
    )
    plan = make_plan(config, config_dir=tmp_path)
    batches = math.ceil(3 * (repeats + 1) / batch) + math.ceil(2 / batch)
    assert plan.steps_per_epoch == math.ceil(batches / accumulation)
    assert plan.max_steps == 2 * plan.steps_per_epoch


def test_found_is_used_plus_refused_and_every_refusal_is_told(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    (clips / "clip-0.txt").unlink()
    (clips / "clip-2.mp4").write_bytes(b"")
    plan = make_plan(make_run(tmp_path, [video_entry(clips)]), config_dir=tmp_path)
    assert "clips: 3 found = 1 used + 2 refused" in accounting_lines(plan_report(plan, (), None))
    with pytest.raises(DataError) as error:
        plan.require_sound()
    assert str(error.value).splitlines()[0] == (
        "2 of 3 files found cannot be used; `longcat-tune check` shows the whole picture:"
    )
    assert len(str(error.value).splitlines()) == 3


def test_the_held_out_dataset_is_not_trained_on(tmp_path: Path) -> None:
    train, val = make_clips(tmp_path / "train", 2), make_clips(tmp_path / "val", 1)
    datasets = [
        video_entry(train),
        video_entry(val, id="val"),
        video_entry(val, id="more", dataset_type="eval"),
    ]
    config = make_run(tmp_path, datasets, eval_dataset_id="val")
    plan = make_plan(config, config_dir=tmp_path)
    assert [dataset.entry.id for dataset in plan.training] == ["clips"]
    assert [dataset.entry.id for dataset in plan.held_out] == ["val", "more"]
    assert plan.render_source is plan.held_out[0].plan


def test_a_text_embeds_entry_names_the_text_cache_for_renders_too(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    text = {"id": "text", "dataset_type": "text_embeds", "cache_dir": str(tmp_path / "text")}
    config = make_run(tmp_path, [video_entry(clips), text])
    for plan in (make_plan(config, config_dir=tmp_path), plan_renders(config, config_dir=tmp_path)):
        assert plan.text_cache == tmp_path / "text"


def test_a_run_whose_only_clips_are_held_out_says_so(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    plan = make_plan(make_run(tmp_path, [video_entry(clips)], eval_dataset_id="clips"), config_dir=tmp_path)
    with pytest.raises(DataError, match=r"no clips to train on \(clips is held out for renders\); add"):
        plan.require_sound()


def test_a_start_image_that_belongs_to_no_clip_is_named(tmp_path: Path, caplog) -> None:
    clips, stills = make_clips(tmp_path / "clips", 1), tmp_path / "stills"
    stills.mkdir()
    for name in ("clip-0", "clip-O"):
        Image.new("RGB", (64, 64)).save(stills / f"{name}.png")
    conditioning = {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": str(stills)}
    datasets = [video_entry(clips, is_i2v=True, conditioning_data=["stills"]), conditioning]
    with caplog.at_level("INFO"):
        make_plan(make_run(tmp_path, datasets), config_dir=tmp_path)
    assert "stills: 1 of 2 start images belong to no clip: clip-O.png" in caplog.messages


def test_mixed_sizes_and_rates_are_told(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    write_mp4(clips / "wide.mp4", render(demo_scenes(1)[0], 128, 64, 30), 24.0)
    (clips / "wide.txt").write_text("wide")
    plan = make_plan(make_run(tmp_path, [video_entry(clips)]), config_dir=tmp_path)
    lines = accounting_lines(plan_report(plan, (), None))
    assert "clips: clips of several frames per second: 15 (2), 24 (1)" in lines
    assert "clips: clips of several sizes: 64x64 (2), 128x64 (1)" in lines
