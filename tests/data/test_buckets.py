"""The tables of the specification, and the model authors' own look-ups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longcat_tune.data.buckets import (
    OFFICIAL_SIZES,
    bucket_size,
    clip_length,
    cover_size,
    crop_slices,
    to_grid,
)

GOLDEN = Path(__file__).parents[3] / "shared/golden/model/manifest.json"

SIZES = [
    ((832, 480), (832, 512), (704, 384)),
    ((1280, 720), (832, 512), (704, 384)),
    ((1920, 1080), (832, 512), (704, 384)),
    ((854, 480), (832, 512), (704, 384)),
    ((480, 832), (512, 832), (384, 704)),
    ((640, 480), (640, 512), (576, 448)),
    ((1440, 1080), (640, 512), (576, 448)),
    ((333, 333), (512, 512), (512, 512)),
    ((1920, 800), (1152, 512), (768, 320)),
]


@pytest.mark.parametrize(("source", "pixel", "pixel_area"), SIZES)
def test_grid_sizes_at_480(source, pixel, pixel_area):
    assert bucket_size(*source, resolution=480, resolution_type="pixel") == pixel
    assert bucket_size(*source, resolution=480, resolution_type="pixel_area") == pixel_area
    assert bucket_size(*source, resolution=0.2304, resolution_type="area") == pixel_area


def test_aspect_ratio_is_rounded_to_two_digits():
    assert bucket_size(736, 480, resolution=480, resolution_type="pixel") == (704, 512)
    assert bucket_size(800, 480, resolution=480, resolution_type="pixel") == (832, 512)


@pytest.mark.parametrize(
    ("kind", "value"), [("pixel", 480), ("pixel", 720), ("pixel_area", 480), ("area", 0.9)]
)
def test_any_shape_of_the_same_aspect_ratio_gives_the_same_size(kind, value):
    for width in range(3, 4000, 131):
        for height in range(3, 4000, 137):
            of_clip = bucket_size(width, height, resolution=value, resolution_type=kind)
            assert of_clip == bucket_size(width / height, 1, resolution=value, resolution_type=kind)


def test_area_is_in_megapixels():
    assert bucket_size(1280, 720, resolution=1.0, resolution_type="area") == (1344, 768)
    assert bucket_size(720, 1280, resolution=1.0, resolution_type="area") == (768, 1344)
    assert bucket_size(500, 500, resolution=1.0, resolution_type="area") == (1024, 1024)


def test_sizes_stay_on_the_grid_for_any_source():
    for width in range(3, 4000, 131):
        for height in range(3, 4000, 137):
            for kind in ("pixel", "pixel_area"):
                size = bucket_size(width, height, resolution=256, resolution_type=kind)
                assert min(size) >= 64
                assert size[0] % 64 == size[1] % 64 == 0


def test_grid_rounds_half_to_even_and_never_to_zero():
    assert [to_grid(length) for length in (0, 31, 96, 160, 480, 512, 543, 545)] == [
        64, 64, 128, 128, 512, 512, 512, 576,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "source", "size"),
    [
        ("official_480p", (1280, 720), (832, 480)),
        ("official_480p", (832, 480), (832, 480)),
        ("official_480p", (480, 832), (480, 832)),
        ("official_480p", (640, 480), (736, 544)),
        ("official_480p", (512, 512), (640, 608)),
        ("official_480p", (333, 1000), (352, 1088)),
        ("official_480p", (1200, 300), (1216, 320)),
        ("official_720p", (1280, 720), (1312, 704)),
        ("official_720p", (832, 480), (1248, 736)),
        ("official_720p", (512, 512), (960, 960)),
        ("official_720p", (333, 1000), (544, 1664)),
        ("official_720p", (1200, 300), (1920, 480)),
    ],
)
def test_official_sizes(table, source, size):
    assert bucket_size(*source, resolution=480, resolution_type="pixel", table=table) == size


def test_official_tables_are_whole_and_in_order():
    assert [len(sizes) for sizes in OFFICIAL_SIZES.values()] == [26, 31]
    for sizes in OFFICIAL_SIZES.values():
        keys = [key for key, _, _ in sizes]
        assert keys == sorted(keys)
        for key, height, width in sizes:
            assert height % 32 == width % 32 == 0
            assert height / width == pytest.approx(key, abs=0.011)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden folder is not here")
def test_official_look_ups_of_the_model_authors():
    for name, (height, width) in json.loads(GOLDEN.read_text())["bucket_lookup"].items():
        stage, factor, source = name.split("/")
        if factor in {"16", "32"}:
            source_height, source_width = map(int, source.split("x"))
            found = bucket_size(
                source_width, source_height, resolution=1, resolution_type="pixel", table=f"official_{stage}"
            )
            assert found == (width, height), name


def test_clip_lengths():
    lengths = {93: 93, 92: 89, 100: 97, 61: 61, 4: 1, 1: 1}
    assert {num_frames: clip_length(num_frames) for num_frames in lengths} == lengths
    assert [clip_length(num_frames, interval=8) for num_frames in (93, 97)] == [89, 97]
    assert clip_length(93, interval=5) == clip_length(93, interval=8)


@pytest.mark.parametrize(
    ("source", "target", "cover"),
    [
        ((1280, 720), (832, 512), (910, 512)),
        ((720, 1280), (512, 832), (512, 910)),
        ((640, 480), (640, 512), (683, 512)),
        ((3840, 2160), (832, 480), (853, 480)),
        ((832, 480), (832, 480), (832, 480)),
        ((1920, 800), (1152, 512), (1229, 512)),
        ((100, 400), (512, 512), (512, 2048)),
    ],
)
def test_cover_size_and_crop(source, target, cover):
    assert cover_size(*source, *target) == cover
    rows, columns = crop_slices(*cover, *target, (0.5, 0.5))
    assert (columns.stop - columns.start, rows.stop - rows.start) == target
    assert abs(columns.start - (cover[0] - columns.stop)) <= 1
    assert abs(rows.start - (cover[1] - rows.stop)) <= 1


def test_crop_lies_where_the_shares_of_the_spare_pixels_say():
    assert crop_slices(100, 60, 80, 20, (0.0, 0.0)) == (slice(0, 20), slice(0, 80))
    assert crop_slices(100, 60, 80, 20, (1.0, 0.0)) == (slice(0, 20), slice(20, 100))
    assert crop_slices(100, 60, 80, 20, (0.25, 1.0)) == (slice(40, 60), slice(5, 85))
