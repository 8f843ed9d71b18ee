"""Every dataset is looked at, every file is accounted for, and steps are counted as the surface says."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longcat_tune.errors import DataError
from longcat_tune.runs.plan import make_plan, plan_renders
from longcat_tune.runs.report import plan_report
from longcat_tune.runs.report_text import dataset_lines, step_lines
from tests.builders import make_clips, make_run, stills_entry, video_entry


def plan_of(folder: Path, datasets: list[dict[str, Any]], **keys: Any):
    return make_plan(make_run(folder, datasets, **keys), config_dir=folder)


def report_of(folder: Path, datasets: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    config = make_run(folder, datasets, **keys)
    return plan_report(make_plan(config, config_dir=folder), (), None, config.training)


@pytest.mark.parametrize(("batch", "accumulation", "repeats"), [(1, 1, 0), (2, 1, 0), (2, 3, 1), (4, 2, 2)])
def test_steps_per_epoch(tmp_path: Path, batch: int, accumulation: int, repeats: int) -> None:
    square = make_clips(tmp_path / "square", 3)
    wide = make_clips(tmp_path / "wide", 2, size=(128, 64))
    plan = plan_of(
        tmp_path,
        [video_entry(square, repeats=repeats), video_entry(wide, id="wide")],
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_train_steps=None,
        num_train_epochs=2,
    )
    batches = math.ceil(3 * (repeats + 1) / batch) + math.ceil(2 / batch)
    assert plan.steps_per_epoch == math.ceil(batches / accumulation)
    assert plan.max_steps == 2 * plan.steps_per_epoch


def test_processes_that_a_launcher_started_share_the_batches(tmp_path: Path, monkeypatch) -> None:
    clips = make_clips(tmp_path / "clips", 5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    report = report_of(tmp_path, [video_entry(clips)], max_train_steps=None, num_train_epochs=2)
    assert (report["steps_per_epoch"], report["max_steps"]) == (3, 6)
    assert report["datasets"][0]["buckets"][0]["steps_per_epoch"] == [2.5]


def test_datasets_that_come_and_go_make_phases(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 4)
    datasets = [video_entry(clips, end_step=8), video_entry(clips, id="late", start_step=5, probability=0.5)]
    report = report_of(tmp_path, datasets, max_train_steps=20)
    assert [(phase["first_step"], phase["last_step"]) for phase in report["phases"]] == [
        (1, 4),
        (5, 8),
        (9, None),
    ]
    first, late = report["datasets"]
    assert first["buckets"][0]["steps_per_epoch"] == [4, 4, 0]
    assert late["buckets"][0]["steps_per_epoch"] == [0, 2, 2]
    assert step_lines(report) == [
        "steps 1 to 4: 4 steps per epoch of clips",
        "steps 5 to 8: 6 steps per epoch of clips, late",
        "from step 9: 2 steps per epoch of late, 20 steps in all",
    ]


@pytest.mark.parametrize(
    ("spans", "steps", "words"),
    [
        ([(0, 4), (9, None)], 20, "steps 5 to 8 use no dataset"),
        ([(0, 4), (0, 3)], 5, "max_train_steps (5) is more than the datasets give"),
    ],
)
def test_steps_without_a_dataset_are_a_problem(tmp_path: Path, spans, steps: int, words: str) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    datasets = [
        video_entry(clips, id=f"clips-{number}", start_step=first, end_step=last)
        for number, (first, last) in enumerate(spans)
    ]
    [problem] = plan_of(tmp_path, datasets, max_train_steps=steps).problems
    assert problem.text.startswith(words)
    assert problem.remedy


def test_regularisation_data_are_told_and_do_not_make_a_run_alone(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    known = video_entry(clips, id="known", is_regularisation_data=True)
    assert dataset_lines(report_of(tmp_path, [video_entry(clips), known]))[-1] == (
        "known: regularisation data: the model's own predictions are the targets"
    )
    [problem] = plan_of(tmp_path, [known]).problems
    assert problem.text.startswith("data_backend_config: every dataset (known) is regularisation data")


def test_a_dataset_that_begins_after_the_last_step_is_named(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    datasets = [video_entry(clips), video_entry(clips, id="late", start_step=3)]
    facts = [notice.fact for notice in plan_of(tmp_path, datasets, max_train_steps=2).notices]
    assert "start_step (3) comes after the last step (2): nothing of it is trained" in facts
    assert not any("start_step" in one.fact for one in plan_of(tmp_path, datasets, max_train_steps=3).notices)


def test_found_is_used_plus_refused_and_every_refusal_is_told(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    (clips / "clip-0.txt").unlink()
    (clips / "clip-2.mp4").write_bytes(b"")
    assert dataset_lines(report_of(tmp_path, [video_entry(clips)])) == ["clips: 3 found = 1 used + 2 refused"]
    with pytest.raises(DataError) as error:
        plan_of(tmp_path, [video_entry(clips)]).require_sound()
    head, *lines = str(error.value).splitlines()
    assert head == "2 problems; `longcat-tune check` shows the whole picture:"
    assert [line.split()[:2] for line in lines] == [
        ["clips:", str(clips / "clip-0.mp4")],
        ["clips:", str(clips / "clip-2.mp4")],
    ]


def test_what_is_left_out_and_what_is_cut_into_several_clips_is_counted(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3, frames=27)
    options = {"num_frames": 9, "clip_selection": "all"}
    datasets = [video_entry(clips, max_num_samples=2, video=options)]
    assert dataset_lines(report_of(tmp_path, datasets)) == [
        "clips: 3 found = 2 used (as 6 clips) + 0 refused + 1 left out"
    ]


def test_two_datasets_that_are_broken_are_both_told(tmp_path: Path) -> None:
    clips, table = make_clips(tmp_path / "clips", 1), tmp_path / "captions.csv"
    table.write_text("file,text\nclip-0.mp4,a\n")
    gone = tmp_path / "gone"
    datasets = [
        video_entry(gone, id="gone"),
        video_entry(clips, id="table", caption_strategy="csv", caption_table={"path": str(table)}),
        video_entry(clips),
    ]
    plan = plan_of(tmp_path, datasets)
    assert [(fault.dataset_id, fault.path) for fault in plan.faults] == [("gone", gone), ("table", table)]
    assert len(plan.problems) == 2
    assert [len(dataset.plan.clips) for dataset in plan.training][2] == 1


def test_a_folder_of_start_images_that_is_missing_is_told_once(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    datasets = [
        video_entry(clips, is_i2v=True, conditioning_data=["stills"]),
        stills_entry(tmp_path / "gone"),
    ]
    [problem] = plan_of(tmp_path, datasets).problems
    assert problem.text.startswith(f"stills: {tmp_path / 'gone'} cannot be read as a folder")


def test_a_missing_package_is_a_fault_of_its_dataset(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    clips = make_clips(tmp_path / "clips", 1)
    (clips / "clip-0.txt").unlink()
    plan = plan_of(
        tmp_path, [video_entry(clips), video_entry(tmp_path / "gone", id="gone")], video_backend="decord"
    )
    assert [problem.dataset for problem in plan.problems] == ["clips", "gone"]
    assert "decord" in plan.problems[0].text


def test_the_held_out_dataset_is_not_trained_on(tmp_path: Path) -> None:
    train, val = make_clips(tmp_path / "train", 2), make_clips(tmp_path / "val", 1)
    datasets = [
        video_entry(train),
        video_entry(val, id="val"),
        video_entry(val, id="more", dataset_type="eval"),
    ]
    plan = plan_of(tmp_path, datasets, eval_dataset_id="val")
    assert [dataset.entry.id for dataset in plan.training] == ["clips"]
    assert [dataset.entry.id for dataset in plan.held_out] == ["val", "more"]
    assert plan.render_source is plan.held_out[0].plan


def test_held_out_clips_that_are_trained_on_are_named(tmp_path: Path) -> None:
    clips, val = make_clips(tmp_path / "clips", 2), make_clips(tmp_path / "val", 1)
    shutil.copy(clips / "clip-1.mp4", val / "clip-0.mp4")
    datasets = [video_entry(clips), video_entry(val, id="val", dataset_type="eval")]
    [fact] = [one.fact for one in plan_of(tmp_path, datasets).notices if one.dataset_id == "val"]
    assert "held out and trained on too: 1 (val/clip-0.mp4 = clips/clip-1.mp4)" in fact


def test_a_held_out_dataset_with_a_fault_is_not_rendered_from(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    for plan in (
        plan_of(
            tmp_path, [video_entry(clips), video_entry(tmp_path / "gone", id="val")], eval_dataset_id="val"
        ),
        plan_renders(
            make_run(tmp_path, [video_entry(tmp_path / "gone", id="val")]),
            config_dir=tmp_path,
            source_id="val",
        ),
    ):
        assert plan.render_source is None
        assert [problem.dataset for problem in plan.problems] == ["val"]


def test_a_held_out_dataset_whose_table_is_missing_is_not_rendered_from(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    val = video_entry(
        clips, id="val", caption_strategy="csv", caption_table={"path": str(tmp_path / "no.csv")}
    )
    plan = plan_of(tmp_path, [video_entry(clips), val], eval_dataset_id="val")
    assert plan.render_source is None
    assert [problem.dataset for problem in plan.problems] == ["val"]


def test_a_text_embeds_entry_names_the_text_cache_for_renders_too(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    text = {"id": "text", "dataset_type": "text_embeds", "cache_dir": str(tmp_path / "text")}
    config = make_run(tmp_path, [video_entry(clips), text])
    for plan in (make_plan(config, config_dir=tmp_path), plan_renders(config, config_dir=tmp_path)):
        assert plan.text_cache == tmp_path / "text"


def test_a_run_whose_only_clips_are_held_out_says_so(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    with pytest.raises(DataError, match=r"no clips to train on \(clips is held out for renders\); add"):
        plan_of(tmp_path, [video_entry(clips)], eval_dataset_id="clips").require_sound()


def test_start_images_are_counted_and_those_of_no_clip_named(tmp_path: Path) -> None:
    clips, stills = make_clips(tmp_path / "clips", 1), tmp_path / "stills"
    stills.mkdir()
    for name in ("clip-0", "clip-O"):
        Image.new("RGB", (64, 64)).save(stills / f"{name}.png")
    datasets = [video_entry(clips, is_i2v=True, conditioning_data=["stills"]), stills_entry(stills)]
    plan = plan_of(tmp_path, datasets)
    assert "start images that belong to no clip: 1 of 2 (clip-O.png)" in [one.fact for one in plan.notices]
    assert dataset_lines(report_of(tmp_path, datasets)) == [
        "clips: 1 found = 1 used + 0 refused",
        "clips: tasks: image-to-video from stills 100%",
        "stills: 2 found = 1 used as start images + 0 refused + 1 without a clip",
    ]
    assert plan.conditioning_entry(stills / "clip-0.png") == plan.conditioning[0]
    assert plan.conditioning_entry(tmp_path / "stills-2" / "clip-0.png") is None


def test_what_is_known_of_files_is_shared_and_saved(tmp_path: Path, monkeypatch) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    shutil.copy(clips / "clip-0.mp4", clips / "clip-1.mp4")
    plan = plan_of(tmp_path, [video_entry(clips)])
    folder = tmp_path / "out" / "cache" / "vae" / "clips"
    assert plan.source_index(folder) is plan.source_index(folder)
    assert (folder / "sources.jsonl").is_file()

    def examine(*_: object) -> None:
        raise AssertionError("known from before")

    monkeypatch.setattr("longcat_tune.data.examine._examine", examine)
    monkeypatch.setattr("hashlib.file_digest", examine)
    assert len(plan_of(tmp_path, [video_entry(clips)]).training[0].plan.clips) == 2
