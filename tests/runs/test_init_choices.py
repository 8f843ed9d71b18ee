"""What `init` decides from sizes, lengths, rates and numbers of clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.runs.init_choices import (
    MANY_WINDOWS,
    choose_framerate,
    choose_frames,
    choose_repeats,
    choose_size,
    choose_steps,
    clip_lengths,
)
from longcat_tune.runs.init_recipes import RECIPES
from longcat_tune.types import ClipRecord, Stamp

STAMP = Stamp(1, 1)


def record(
    *, size: tuple[int, int] = (832, 480), frames: int = 93, fps: float = 30, kind: str = "video"
) -> ClipRecord:
    return ClipRecord("clips", Path("a.mp4"), "a.mp4", kind, ("a",), *size, frames, frames / fps, STAMP)


@pytest.mark.parametrize(
    ("fps", "framerate"), [(15, 15), (16, 15), (24, 15), (25, 15), (29.97, 30), (30, 30), (60, 30)]
)
def test_the_framerate_repeats_no_frame(fps: float, framerate: int) -> None:
    assert choose_framerate([record(fps=fps)]).value == framerate


def test_numbered_pictures_have_no_rate_and_keep_their_number() -> None:
    pictures = record(kind="sequence", frames=61, fps=30)
    assert choose_framerate([pictures]).value == 30
    assert clip_lengths([pictures], 15) == [61]


def test_clips_are_measured_as_the_plan_measures_them() -> None:
    """A container that rounds times says 3.0999 s for 93 frames; the plan counts 93, so must init."""
    rounded = ClipRecord("clips", Path("a.mkv"), "a.mkv", "video", ("a",), 832, 480, 93, 3.0999, STAMP)
    assert clip_lengths([rounded], 30) == [93]


@pytest.mark.parametrize(
    ("lengths", "num_frames", "strategy", "selection", "count"),
    [
        ([93, 120, 180], 93, "aspect_ratio", "start", 3),
        ([85, 93, 100], 85, "aspect_ratio", "start", 3),
        ([20, 93, 100], 93, "resolution_frames", "start", 3),
        ([20, 30, 62], 61, "resolution_frames", "start", 3),
        ([190, 279, 300], 93, "aspect_ratio", "all", 2 + 3 + 3),
        ([93 * MANY_WINDOWS, 200], 93, "aspect_ratio", "random", 2),
        ([3, 3], 1, "resolution_frames", "all", 6),
    ],
)
def test_lengths_decide_how_frames_are_taken(
    lengths: list[int], num_frames: int, strategy: str, selection: str, count: int
) -> None:
    chosen = choose_frames(lengths, longest=93, from_start=False, i2v=False)
    assert (chosen.num_frames, chosen.strategy.value) == (num_frames, strategy)
    assert (chosen.selection.value, chosen.count) == (selection, count)


@pytest.mark.parametrize(
    ("sizes", "resolution", "table"),
    [
        ([(1920, 1080)], 480, "official_480p"),
        ([(832, 480), (480, 832), (854, 480)], 480, "official_480p"),
        ([(640, 360)], 320, None),
        ([(320, 240)], 256, None),
        ([(1280, 720)] * 10 + [(320, 240)], 480, "official_480p"),
        ([(1280, 720), (640, 360)], 320, None),
    ],
)
def test_the_size_enlarges_hardly_any_clip(
    sizes: list[tuple[int, int]], resolution: int, table: str | None
) -> None:
    chosen = choose_size([record(size=size) for size in sizes], RECIPES["final"]).value
    assert (chosen.resolution, chosen.bucket_table) == (resolution, table)


def test_a_handful_of_clips_is_used_several_times_an_epoch() -> None:
    assert choose_repeats(50) is None
    for count in (1, 7, 49):
        repeats = choose_repeats(count)
        assert repeats is not None
        assert 50 <= count * (repeats.value + 1) < 50 + count


def test_more_clips_get_more_steps_within_bounds() -> None:
    recipe = RECIPES["final"]
    steps = [choose_steps(count, recipe).value for count in (1, 10, 40, 100, 10_000)]
    assert steps == [1000, 1000, 2000, 3250, 5000]


def test_steps_for_regularisation_data_come_on_top() -> None:
    recipe = RECIPES["final"]
    chosen = choose_steps(40, recipe, share=0.8)
    assert chosen.value == choose_steps(40, recipe).value / 0.8
    assert chosen.why.startswith("about 50 looks at each of 40, and 20% of the steps for regularisation data")
