"""Renders are planned from the prompt and from held-out files, each with a name of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.errors import ConfigError
from longcat_tune.runs.preflight import preflight
from longcat_tune.runs.requests import command_requests, plan_requests
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import Bucket
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


def test_a_dataset_that_only_continues_is_continued_from_its_first_frames(tmp_path: Path) -> None:
    val = make_clips(tmp_path / "val", 1, frames=19)
    video = {"num_frames": 9, "continuation_frames": 5, "clip_selection": "middle"}
    [request] = requests_of(tmp_path, video_entry(val, id="val", video=video))
    assert request.start_image == val / "clip-0.mp4"
    assert (request.start_frame, request.num_start_frames) == (5, 5)


def of_config(folder: Path, **keys: Any) -> tuple[RenderRequest, ...]:
    config = make_run(folder, [], data_backend_config=None, **keys)
    return plan_requests(config, None, config_dir=folder)


def test_libraries_are_rendered_beside_the_prompt_each_in_its_own_way(tmp_path: Path) -> None:
    clip = make_clips(tmp_path / "clips", 1, frames=20) / "clip-0.mp4"
    write_image(tmp_path / "start.png")
    library = {
        "plain": "A dog runs.",
        "own": {
            "prompt": "A cat.",
            "negative_prompt": "dogs",
            "resolution": "32x64",
            "num_video_frames": 21,
            "num_inference_steps": 7,
            "guidance": 0.0,
            "seed": 0,
            "image": "start.png",
            "segments": 3,
        },
        "on": {"prompt": "It goes on.", "video": str(clip), "num_video_frames": 17},
    }
    (tmp_path / "prompts.json").write_text(json.dumps(library))
    first, plain, own, on = of_config(
        tmp_path,
        validation_prompt="a",
        user_prompt_library="prompts.json",
        validation_negative_prompt="blur",
    )
    assert [request.name for request in (first, plain, own, on)] == ["prompt", "plain", "own", "on"]
    assert (plain.negative_prompt, plain.size, plain.seed) == ("blur", Bucket(64, 64, 9), 42)
    assert (own.negative_prompt, own.size, own.seed) == ("dogs", Bucket(32, 64, 21), 0)
    assert (own.num_steps, own.guidance, own.num_segments, own.num_frames) == (7, 0.0, 3, 37)
    assert (own.start_image, own.num_start_frames) == (tmp_path / "start.png", 1)
    assert (on.start_image, on.start_frame, on.num_start_frames) == (clip, 7, 13)


def test_the_built_in_library_is_rendered_when_asked_for(tmp_path: Path) -> None:
    assert len(of_config(tmp_path, validation_prompt_library=True)) == 12


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "x", "image": "no.png"}, r"a: image \(no\.png\) is not there"),
        ({"prompt": "x", "video": "short.mp4"}, r"has 9 frames at 15 fps.*last 13"),
        ({"prompt": "x", "segments": 2}, r"a: 9 frames are no more than the 13.*set 17 or more"),
    ],
)
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (make_clips(tmp_path / "clips", 1) / "clip-0.mp4").rename(tmp_path / "short.mp4")
    (tmp_path / "prompts.json").write_text(json.dumps({"a": entry}))
    with pytest.raises(ConfigError, match=message):
        of_config(tmp_path, user_prompt_library="prompts.json")


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"user_prompt_library \(no\.json\) is not there \(tried"):
        of_config(tmp_path, user_prompt_library="no.json")


def test_no_two_renders_have_one_file_name_also_where_capitals_do_not_count(tmp_path: Path) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    prompts = ["cat", "cat!", "cat 2", "Cat", "a cat"]
    requests = command_requests(config, prompts=prompts, image=None, video=None, segments=1)
    assert [request.name for request in requests] == ["cat", "cat-2", "cat-2-2", "Cat-3", "a-cat"]
    assert [request.prompt for request in requests] == prompts


def test_a_size_listed_twice_is_rendered_once(tmp_path: Path) -> None:
    requests = of_config(tmp_path, validation_prompt="a", validation_resolution="64x64,32x64,64x64")
    assert [request.size for request in requests] == [Bucket(64, 64, 9), Bucket(32, 64, 9)]
