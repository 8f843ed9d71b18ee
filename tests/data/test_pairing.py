"""Start images are found by relative path and stem, or the clip is refused with what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.types import Refusal
from tests.data.records import STILLS, image, manifest, plan_of, planned, record, refusal_of

MISSING = (
    "has no conditioning image; tried /stills/{0}.{{png,jpg,jpeg,webp,bmp,tif,tiff}}; "
    "add it, or leave conditioning_data out to start from the clip's own first frame"
)


def stills(*names: str, **values):
    return manifest(*(image(name, STILLS) for name in names), folder=STILLS, **values)


def test_without_conditioning_data_the_clips_own_first_frame_is_meant():
    clip = planned(record(), is_i2v=True)
    assert clip.record.conditioning is None


@pytest.mark.parametrize("extension", [".png", ".JPG", ".webp"])
def test_partner_has_the_same_relative_path_with_any_image_extension(extension):
    partners = stills("a.v2.png", f"sub/a.v2{extension}", "sub/a.png")
    nothing = manifest(folder=Path("/none"))
    clip = planned(record("sub/a.v2.mp4"), is_i2v=True, conditioning=[nothing, partners])
    assert clip.record.conditioning.path == STILLS / f"sub/a.v2{extension}"


@pytest.mark.parametrize("name", ["a b.mp4", "naïve 文字 🎬.mp4", "line\nbreak.mp4", "-i.mp4", "a:b%d.mp4"])
def test_partner_of_any_name_is_found(name):
    partner = f"{name.removesuffix('.mp4')}.png"
    clip = planned(record(name), is_i2v=True, conditioning=[stills(partner)])
    assert clip.record.conditioning.path == STILLS / partner


def test_partner_of_a_folder_of_pictures_has_its_whole_name():
    shots = record("shots/walk.v2", kind="sequence")
    clip = planned(shots, is_i2v=True, conditioning=[stills("shots/walk.v2.png")])
    assert clip.record.conditioning.path == STILLS / "shots/walk.v2.png"
    assert refusal_of(shots, is_i2v=True, conditioning=[stills("shots/walk.png")]) == MISSING.format(
        "shots/walk.v2"
    )


def test_missing_partner_is_refused_with_the_paths_tried():
    conditioning = [stills("b.png"), manifest(folder=Path("/more"))]
    assert refusal_of(record("sub/a.mp4"), is_i2v=True, conditioning=conditioning) == (
        "has no conditioning image; tried /stills/sub/a.{png,jpg,jpeg,webp,bmp,tif,tiff} and "
        "/more/sub/a.{png,jpg,jpeg,webp,bmp,tif,tiff}; "
        "add it, or leave conditioning_data out to start from the clip's own first frame"
    )


def test_unusable_and_double_partners_are_refused():
    broken = Refusal("stills", STILLS / "sub/a.png", "cannot be read as an image (truncated)", "replace it")
    assert refusal_of(record("sub/a.mp4"), is_i2v=True, conditioning=[stills(refusals=(broken,))]) == (
        "has an unusable conditioning image: /stills/sub/a.png cannot be read as an image (truncated); "
        "replace it"
    )
    assert refusal_of(record("a.mp4"), is_i2v=True, conditioning=[stills("a.jpg", "a.png")]) == (
        "has 2 conditioning images: /stills/a.jpg, /stills/a.png; keep one of them"
    )


def test_clips_are_paired_when_any_of_their_tasks_is_image_to_video():
    mix = {"task_mix": {"t2v": 0.9, "i2v": 0.1}}
    clip = planned(record("a.mp4"), conditioning=[stills("a.png")], **mix)
    assert clip.record.conditioning.path == STILLS / "a.png"
    assert refusal_of(record("a.mp4"), conditioning=[stills("b.png")], **mix) == MISSING.format("a")


def test_start_images_that_no_task_takes_are_told():
    conditioning = [stills("a.png")]
    plan = plan_of(
        record("a.mp4", size=(1664, 1024)), conditioning=conditioning, conditioning_data=["stills"]
    )
    assert plan.clips[0].record.conditioning is None
    [notice] = plan.notices
    assert (notice.dataset_id, notice.fact) == (
        "clips",
        "conditioning_data (stills) has no effect: no task takes a start image",
    )
    assert notice.remedy == "set is_i2v to true, give i2v a share in task_mix, or remove conditioning_data"
