"""Renders are planned from the prompt and from held-out files, each with a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longcat_tune.runs.preflight import preflight
from longcat_tune.sampling.requests import RenderRequest
from tests.builders import make_clips, make_run, stills_entry, video_entry
from tests.media_builders import write_image


def requests_of(folder: Path, held_out: dict[str, Any], *others: dict[str, Any]) -> tuple[RenderRequest, ...]:
    clips = make_clips(folder / "clips", 1)
    config = make_run(
        folder,
        [video_entry(clips), held_out, *others],
        eval_dataset_id="val",
        validation_using_datasets=True,
        num_eval_images=2,
    )
    return preflight(config, config_dir=folder, trains=False).requests


def test_a_file_that_is_cut_into_several_clips_is_rendered_once(tmp_path: Path) -> None:
    val = make_clips(tmp_path / "val", 3, frames=27)
    entry = video_entry(val, id="val", video={"num_frames": 9, "clip_selection": "all"})
    assert [request.name for request in requests_of(tmp_path, entry)] == ["clip-0", "clip-1"]


def test_an_image_to_video_render_starts_where_its_clip_does(tmp_path: Path) -> None:
    val = make_clips(tmp_path / "val", 1, frames=19)
    entry = video_entry(val, id="val", is_i2v=True, video={"num_frames": 9, "clip_selection": "middle"})
    [request] = requests_of(tmp_path, entry)
    assert (request.start_image, request.start_frame) == (val / "clip-0.mp4", 5)


def test_a_start_image_is_taken_where_there_is_one(tmp_path: Path) -> None:
    val = make_clips(tmp_path / "val", 1)
    still = write_image(tmp_path / "stills" / "clip-0.png")
    entry = video_entry(val, id="val", is_i2v=True, conditioning_data=["stills"])
    [request] = requests_of(tmp_path, entry, stills_entry(still.parent))
    assert (request.start_image, request.start_frame) == (still, 0)


def test_a_mix_without_image_to_video_renders_from_text(tmp_path: Path) -> None:
    val = make_clips(tmp_path / "val", 1)
    mix = {"t2v": 0.5, "continuation": 0.5}
    entry = video_entry(val, id="val", task_mix=mix, video={"num_frames": 9, "continuation_frames": 5})
    [request] = requests_of(tmp_path, entry)
    assert request.start_image is None
