"""Shapes of buckets, places of crops, and clips that are too small or too narrow."""

from __future__ import annotations

import pytest

from longcat_tune.data.framing import enlargement
from longcat_tune.types import Bucket
from tests.data.records import STILLS, image, manifest, plan_of, planned, record, refusal_of

RATIOS = {"crop_aspect_buckets": [0.58, 1.0, 1.73]}


def test_sizes_follow_the_entry():
    assert planned(record(size=(640, 480))).bucket.name == "640x512@93"
    assert planned(record(size=(640, 480)), resolution_type="pixel_area").bucket.name == "576x448@93"
    assert (
        planned(record(size=(1280, 720)), resolution=1.0, resolution_type="area").bucket.name == "1344x768@93"
    )
    assert planned(record(size=(1280, 720)), bucket_table="official_480p").bucket.name == "832x480@93"


@pytest.mark.parametrize("size", [(1920, 1080), (480, 832), (512, 512)])
def test_square_brings_every_clip_to_one_bucket(size):
    square = {"crop_aspect": "square"}
    assert planned(record(size=size), **square).bucket.name == "512x512@93"
    assert planned(record(size=size), resolution_type="pixel_area", **square).bucket.name == "512x512@93"
    assert planned(record(size=size), bucket_table="official_720p", **square).bucket.name == "960x960@93"
    assert planned(record(size=size), bucket_table="official_480p", **square).bucket.name == "640x608@93"


@pytest.mark.parametrize(
    ("size", "bucket", "official"),
    [
        ((1920, 1080), "832x512", "832x480"),
        ((1080, 1920), "512x832", "480x832"),
        # By ratio 1.73 is nearer to 1.33 than 1 is; by difference it would be 1.
        ((640, 480), "832x512", "832x480"),
        ((480, 640), "512x832", "480x832"),
        ((1300, 1000), "512x512", "640x608"),
    ],
)
def test_closest_takes_the_nearest_ratio(size, bucket, official):
    closest = {"crop_aspect": "closest", **RATIOS}
    assert planned(record(size=size), **closest).bucket.name == f"{bucket}@93"
    assert planned(record(size=size), bucket_table="official_480p", **closest).bucket.name == f"{official}@93"


def test_random_ratio_depends_on_seed_and_name_and_all_come_up():
    keys = {"crop_aspect": "random", **RATIOS}
    clips = [record(f"{number}.mp4") for number in range(60)]
    names = [[clip.bucket.name for clip in plan_of(*clips, seed=seed, **keys).clips] for seed in (1, 1, 2)]
    assert set(names[0]) == {"512x832@93", "512x512@93", "832x512@93"}
    assert names[0] == names[1] != names[2]
    assert [planned(clip, seed=1, **keys).bucket.name for clip in clips] == names[0]


def test_crops_lie_in_the_centre_the_corner_or_where_the_seed_says():
    assert planned(record()).crop == (0.5, 0.5)
    assert planned(record(), crop_style="corner").crop == (0.0, 0.0)
    crop = planned(record(), crop_style="random").crop
    assert crop == (0.165, 0.8983)
    assert planned(record(), crop_style="random", seed=1).crop != crop
    assert planned(record("b.mp4"), crop_style="random").crop != crop


def test_random_crops_lie_everywhere():
    plan = plan_of(*(record(f"{number}.mp4") for number in range(200)), crop_style="random")
    for side in zip(*(clip.crop for clip in plan.clips), strict=True):
        assert min(side) < 0.05
        assert max(side) > 0.95
        assert all(share == round(share, 4) for share in side)
        assert len(set(side)) > 190


def test_windows_of_one_file_have_one_crop():
    plan = plan_of(record(frames=200), crop_style="random", video={"clip_selection": "all"})
    assert plan.clips[0].crop == plan.clips[1].crop == planned(record(), crop_style="random").crop


def test_enlargement_is_that_of_the_side_that_needs_more():
    assert enlargement(record(size=(416, 480)), Bucket(832, 512, 93)) == 1.0
    assert enlargement(record(size=(1664, 1024)), Bucket(832, 512, 93)) == -0.5


def test_small_clips_are_refused():
    assert refusal_of(record(size=(640, 360)), minimum_image_size=480) == (
        "has 360 pixels on its shorter edge, less than minimum_image_size (480); "
        "take a larger clip or lower minimum_image_size"
    )
    area = {"resolution": 0.5, "resolution_type": "area"}
    assert refusal_of(record(size=(640, 360)), minimum_image_size=0.5, **area) == (
        "has 0.2304 megapixels, less than minimum_image_size (0.5); "
        "take a larger clip or lower minimum_image_size"
    )
    assert planned(record(size=(854, 480)), minimum_image_size=480)


def test_aspect_ratios_outside_the_bounds_are_refused():
    assert refusal_of(record(size=(480, 832)), minimum_aspect_ratio=1) == (
        "is 480x832, an aspect ratio of 0.58 outside minimum_aspect_ratio (1); "
        "crop the clip or change minimum_aspect_ratio"
    )
    assert refusal_of(record(size=(832, 480)), maximum_aspect_ratio=1.5) == (
        "is 832x480, an aspect ratio of 1.73 outside maximum_aspect_ratio (1.5); "
        "crop the clip or change maximum_aspect_ratio"
    )
    assert planned(record(size=(480, 480)), minimum_aspect_ratio=1, maximum_aspect_ratio=1)


def test_clips_that_would_be_enlarged_too_much_are_refused():
    reason = "is 416x240 and would be enlarged by 113% to fill 832x512, more than max_upscale_threshold (0.5)"
    assert refusal_of(record(size=(416, 240)), max_upscale_threshold=0.5) == (
        f"{reason}; take a larger clip or lower resolution"
    )
    assert refusal_of(
        record(size=(416, 240)), max_upscale_threshold=0.5, bucket_table="official_720p"
    ).endswith("; take a larger clip or set bucket_table to official_480p")
    assert planned(record(size=(832, 480)), max_upscale_threshold=0.07)


def test_clips_whose_start_image_would_be_enlarged_too_much_are_refused():
    clip, small = record("a.mp4"), image("a.png", STILLS, width=416, height=240)
    settings = {"is_i2v": True, "conditioning": [manifest(small, folder=STILLS)]}
    assert refusal_of(clip, max_upscale_threshold=0.5, **settings) == (
        "has a conditioning image that is too small: /stills/a.png is 416x240 and would be enlarged by 113% "
        "to fill 832x512, more than max_upscale_threshold (0.5); take a larger image or lower resolution"
    )
    assert planned(clip, max_upscale_threshold=1.14, **settings)
    assert planned(clip, **settings)
