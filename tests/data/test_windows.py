"""Lengths of clips and places of their windows, at the run's frame rate."""

from __future__ import annotations

import pytest

from longcat_tune.data.planning import clip_id
from longcat_tune.data.windows import resampled_frames, window_starts
from tests.data.records import entry, image, plan_of, planned, record, refusal_of

RESOLUTION_FRAMES = {"bucket_strategy": "resolution_frames"}


def starts(selection: str, available: int, num_frames: int = 93, *, name="a.mp4", seed=42, **video):
    options = entry(video={"clip_selection": selection, "num_frames": num_frames} | video).video
    return window_starts(options, available=available, num_frames=num_frames, name=name, seed=seed)


@pytest.mark.parametrize(
    ("frames", "rate", "framerate", "expected"),
    [
        (93, 30, 30, 93),
        (120, 30, 15, 60),
        (121, 30, 15, 60),
        (120, 30, 24, 96),
        (120, 30, 25, 100),
        (100, 25, 30, 120),
        (120, 30000 / 1001, 30, 120),
        (93, 30, 30000 / 1001, 93),
        (1, 30, 30, 1),
        (1, 30, 5, 1),
    ],
)
def test_number_of_frames_after_resampling(frames, rate, framerate, expected):
    assert resampled_frames(frames / rate, framerate) == expected


def test_times_rounded_to_milliseconds_lose_no_frame():
    # mkv and webm: 61 frames at 30 fps end at 2.000 + 0.033 s.
    assert [resampled_frames(round((n - 1) / 30, 3) + 0.033, 30) for n in range(1, 400)] == list(
        range(1, 400)
    )


@pytest.mark.parametrize(
    ("frames", "video", "expected"),
    [
        (93, {}, 93),
        (92, {}, 89),
        (100, {}, 97),
        (61, {}, 61),
        (93, {"frame_interval": 8}, 89),
        (97, {"frame_interval": 8}, 97),
        (97, {"frame_interval": 5}, 97),
        (200, {"max_frames": 61}, 61),
        (200, {"max_frames": 60}, 57),
        (200, {"num_frames": 49}, 49),
        (200, {"num_frames": 49, "max_frames": 61}, 49),
        (200, {"num_frames": 93, "max_frames": 61}, 61),
        (4, {"min_frames": 1}, 1),
    ],
)
def test_clips_keep_their_length_under_resolution_frames(frames, video, expected):
    clip = planned(record(frames=frames), video=RESOLUTION_FRAMES | video)
    assert clip.bucket.num_frames == expected
    assert len(clip.picks(0).times) == expected


def test_short_clips_are_refused_unless_allowed():
    assert refusal_of(record(frames=60, rate=30), framerate=15) == (
        "has 30 frames at 15 fps, fewer than video.num_frames (93); lower video.num_frames to 29, "
        'set allow_short to true, or set video.bucket_strategy to "resolution_frames"'
    )
    assert planned(record(frames=60), allow_short=True).bucket.name == "832x512@57"


@pytest.mark.parametrize("strategy", ["aspect_ratio", "resolution_frames"])
def test_clips_below_min_frames_are_refused(strategy):
    assert refusal_of(
        record(frames=16), framerate=7.5, allow_short=True, video={"bucket_strategy": strategy}
    ) == (
        "has 4 frames at 7.5 fps, fewer than video.min_frames (5); "
        "take a longer clip or lower video.min_frames"
    )


def test_clips_above_max_frames_are_refused_under_aspect_ratio():
    assert refusal_of(record(frames=200), video={"max_frames": 120}) == (
        "has 200 frames at 30 fps, more than video.max_frames (120); cut the clip or raise video.max_frames"
    )


def test_folders_of_numbered_pictures_are_as_long_as_their_rate_says():
    shots = record("shots/walk", kind="sequence", frames=48, rate=24)
    assert planned(shots, framerate=12, video={"num_frames": 21}).bucket.num_frames == 21
    assert refusal_of(shots, framerate=12).startswith("has 24 frames at 12 fps, fewer than")


def test_selection_is_the_start_or_the_middle():
    assert starts("start", 121) == (0,)
    assert starts("middle", 121) == (14,)
    assert starts("middle", 93) == (0,)
    middle = planned(record(frames=121), video={"clip_selection": "middle"})
    assert middle.picks(middle.windows[0]).times[0] == pytest.approx(14 / 30)


def test_clips_with_the_same_window_share_it():
    plan = plan_of(
        record("a.mp4", frames=121), record("b.mp4", frames=122), video={"clip_selection": "middle"}
    )
    assert plan.clips[0].windows is plan.clips[1].windows


def test_random_windows_are_eight_distinct_ones_inside_the_clip():
    drawn = starts("random", 1000)
    assert len(set(drawn)) == 8
    assert drawn == tuple(sorted(drawn))
    assert 0 <= drawn[0] <= drawn[-1] <= 907
    assert drawn == (91, 115, 126, 229, 307, 393, 721, 801)


def test_random_windows_depend_on_seed_and_name():
    drawn = {starts("random", 1000), starts("random", 1000, name="b.mp4"), starts("random", 1000, seed=1)}
    assert len(drawn) == 3


def test_random_takes_every_window_where_there_are_few():
    assert starts("random", 93) == (0,)
    assert starts("random", 100) == (0, 1, 2, 3, 4, 5, 6, 7)
    nine_places = starts("random", 101)
    assert len(set(nine_places)) == 8
    assert set(nine_places) < set(range(9))


def test_random_windows_reach_the_whole_clip():
    reached = {start for number in range(200) for start in starts("random", 120, name=f"{number}.mp4")}
    assert reached == set(range(28))


def test_all_lays_whole_windows_end_to_end():
    assert starts("all", 93) == (0,)
    assert starts("all", 185) == (0,)
    assert starts("all", 186) == (0, 93)
    assert starts("all", 300) == (0, 93, 186)


def test_all_makes_a_clip_of_each_window():
    plan = plan_of(
        record("sub/a.mp4", frames=200), record("b.mp4", frames=93), video={"clip_selection": "all"}
    )
    assert [clip_id(clip) for clip in plan.clips] == [
        "clips/sub/a.mp4#1",
        "clips/sub/a.mp4#2",
        "clips/b.mp4#1",
    ]
    assert [clip.windows for clip in plan.clips] == [(0,), (93,), (0,)]
    assert (plan.found, plan.used, plan.left_out) == (2, 2, 0)
    assert plan.source_rates == {30.0: 2}
    assert plan.source_sizes == {(832, 480): 2}


def test_all_makes_one_clip_of_short_files_and_none_of_remainders():
    plan = plan_of(record(frames=60), video={"clip_selection": "all"}, allow_short=True)
    assert [(clip.bucket.num_frames, clip.windows) for clip in plan.clips] == [(57, (0,))]
    plan = plan_of(record(frames=120), video={"clip_selection": "all"}, allow_short=True)
    assert [(clip.bucket.num_frames, clip.windows) for clip in plan.clips] == [(93, (0,))]


@pytest.mark.parametrize(
    ("frames", "video", "length", "count"),
    [
        (300, {}, 297, 1),
        (8, {"frame_interval": 8, "min_frames": 1}, 1, 1),
        (300, {"num_frames": 93}, 93, 3),
        (300, {"max_frames": 61}, 61, 4),
        (178, {"num_frames": 93, "frame_interval": 8}, 89, 2),
        (92, {"num_frames": 93}, 89, 1),
    ],
)
def test_all_under_resolution_frames_cuts_at_the_length_that_is_set(frames, video, length, count):
    plan = plan_of(record(frames=frames), video=RESOLUTION_FRAMES | {"clip_selection": "all"} | video)
    assert [clip.bucket.num_frames for clip in plan.clips] == [length] * count
    assert [clip.windows for clip in plan.clips] == [(number * length,) for number in range(count)]


@pytest.mark.parametrize("selection", ["start", "middle", "random", "all"])
def test_images_are_one_window_of_one_frame(selection):
    clip = planned(image("a.png"), dataset_type="image", video={"clip_selection": selection})
    assert (clip.bucket.num_frames, clip.windows, clip.number) == (1, (0,), None)
    assert clip.picks(0).times == (0.0,)
    assert clip_id(clip) == "clips/a.png"
