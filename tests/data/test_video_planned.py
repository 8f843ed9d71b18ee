"""From files to frames by way of the plan: exactly the frames that arithmetic on the file's times gives.

Frame numbers are burnt into the pictures; the expected ones come from the packets alone, in fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest

from longcat_tune.data.planning import DatasetPlan
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import PlannedClip
from tests.data.video_clips import (
    CLIPS,
    REFUSED_BY_DECORD,
    VARIABLE_TICKS,
    nearest_frames,
    plan_folder,
    source_times,
)
from tests.media_builders import AV1, VP9, cut_off, damage, numbers_of, read_frames, write_clip

FRAMERATES = (15, 24, 25)
NINE = {"num_frames": 9}


def windows_of(plan: DatasetPlan) -> Iterator[tuple[PlannedClip, range]]:
    for clip in plan.clips:
        for start in clip.windows:
            yield clip, range(start, start + clip.bucket.num_frames)


@pytest.mark.parametrize("name", CLIPS)
def test_all_planned_windows_hold_the_nearest_frames(tmp_path, name):
    path = write_clip(tmp_path / name, **CLIPS[name])
    times = source_times(path)
    for framerate in FRAMERATES:
        plan = plan_folder(tmp_path, framerate=framerate, video=NINE | {"clip_selection": "all"})
        seen = 0
        for clip, window in windows_of(plan):
            numbers = numbers_of(read_frames(path, clip.picks(window.start).times))
            assert numbers == nearest_frames(times, window, framerate)
            seen += len(numbers)
        assert seen == len(plan.clips) * 9 >= 27


@pytest.mark.parametrize("name", CLIPS.keys() - REFUSED_BY_DECORD.keys())
def test_decord_reads_planned_windows_right_or_not_at_all(tmp_path, name):
    pytest.importorskip("decord")
    path = write_clip(tmp_path / name, **CLIPS[name])
    times = source_times(path)
    read = 0
    for framerate in FRAMERATES:
        plan = plan_folder(
            tmp_path, framerate=framerate, backend="decord", video=NINE | {"clip_selection": "random"}
        )
        for clip, window in windows_of(plan):
            try:
                frames_FHW3 = read_frames(path, clip.picks(window.start).times, backend="decord")
            except UnusableFileError:
                continue
            assert numbers_of(frames_FHW3) == nearest_frames(times, window, framerate)
            read += 1
    assert read == 24 or name in {"fragmented.mp4", "intra_refresh.mp4"}


def test_regular_frames_at_other_rates():
    thirty = [Fraction(frame, 30) for frame in range(60)]
    assert nearest_frames(thirty, range(12), 24) == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14]
    assert nearest_frames(thirty, range(12), 25) == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13]


def test_variable_rate_is_resampled_by_time(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", **CLIPS["variable.mp4"])
    # In units of 1/90000 s. At 25 fps, every 3600, some frames are missed and some come twice; the eleventh,
    # at 36000, lies between two.
    assert [tick - VARIABLE_TICKS[0] for tick in VARIABLE_TICKS[:15]] == [
        0, 3000, 9000, 13500, 15000, 18000, 24000, 28500, 30000, 33000, 39000, 43500, 45000, 48000, 54000,
    ]  # fmt: skip
    [clip] = plan_folder(tmp_path, framerate=25, video={"num_frames": 61}).clips
    assert numbers_of(read_frames(path, clip.picks(0).times[:16])) == [
        0, 1, 2, 2, 4, 5, 6, 6, 7, 9, 9, 10, 11, 13, 13, 14,
    ]  # fmt: skip
    assert (clip.record.source_frames, clip.record.seconds) == (60, pytest.approx(2.5, abs=0.05))


def test_every_odd_file_has_its_outcome(tmp_path):
    write_clip(tmp_path / "turned.mp4", rotation=90, frames=30)
    write_clip(tmp_path / "one.mp4", frames=1)
    write_clip(tmp_path / "odd.webm", **VP9, size=(63, 47), frames=30)
    write_clip(tmp_path / "odd.mkv", **AV1, size=(65, 49), frames=30)
    write_clip(tmp_path / "two words.mp4", frames=30)
    write_clip(tmp_path / "naïve 文字.mp4", frames=30)
    write_clip(tmp_path / "line.mp4", frames=30).rename(tmp_path / "line\nbreak.mp4")
    cut_off(write_clip(tmp_path / "cut.mkv"), share=0.6)
    damage(write_clip(tmp_path / "hurt.mp4", frames=30), frame=0)
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("a line of text\n" * 300)
    plan = plan_folder(tmp_path, framerate=15, resolution=64, video=NINE)

    assert {clip.record.name: clip.bucket.name for clip in plan.clips} == {
        "turned.mp4": "64x64@9",
        "odd.webm": "64x64@9",
        "odd.mkv": "64x64@9",
        "two words.mp4": "64x64@9",
        "naïve 文字.mp4": "64x64@9",
        "line\nbreak.mp4": "64x64@9",
    }
    reasons = {refusal.path.name: refusal.reason for refusal in plan.refusals}
    assert reasons.pop("cut.mkv").startswith("is cut off: it announces 2.00 s and holds 0.")
    assert reasons == {
        "one.mp4": "has 1 frames at 15 fps, fewer than video.min_frames (5)",
        "hurt.mp4": "is damaged at 0.00 s",
        "zero.mp4": "is empty (0 bytes)",
        "text.mp4": "cannot be read as a video (Invalid data found when processing input)",
    }
    assert plan.found == plan.used + len(plan.refusals) == 11
    shapes = {}
    for clip in plan.clips:
        frames_FHW3 = read_frames(clip.record.path, clip.picks(0).times)
        shapes[clip.record.name] = frames_FHW3.shape[2:0:-1]
        assert shapes[clip.record.name] == (clip.record.width, clip.record.height)
        if clip.record.name != "turned.mp4":
            assert numbers_of(frames_FHW3) == list(range(0, 18, 2))
    assert shapes["turned.mp4"] == (48, 64)
    assert shapes["odd.webm"] == (63, 47)
