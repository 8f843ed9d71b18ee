"""What holds of every plan, whatever the clips and keys are; examples are the same in every run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.buckets import GRID, OFFICIAL_SIZES, cover_size, crop_slices
from longcat_tune.data.planning import DatasetPlan, clip_id, plan_dataset
from longcat_tune.data.tasks import given_frames, tasks_of
from longcat_tune.data.windows import resampled_frames
from longcat_tune.types import ClipRecord
from tests.data.records import entry, manifest, record

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=150)

SIDES = st.integers(16, 4096)
LENGTHS = st.integers(1, 700)
RATES = st.sampled_from([5, 12.5, 15, 24, 25, 30000 / 1001, 30, 50, 60, 144]) | st.floats(1, 240)
SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0.01, 100)
PLACES = st.tuples(st.floats(0, 1), st.floats(0, 1))


@st.composite
def records(draw: st.DrawFn, number: int = 0) -> ClipRecord:
    kind = draw(st.sampled_from(["video", "video", "sequence", "image"]))
    size = (draw(SIDES), draw(SIDES))
    frames, rate = draw(LENGTHS), draw(RATES)
    if kind == "image":
        return record(f"{number}.png", kind=kind, size=size, frames=1, seconds=0.0)
    return record(f"{number}.mp4", kind=kind, size=size, frames=frames, rate=rate)


@st.composite
def videos(draw: st.DrawFn) -> dict[str, object]:
    options: dict[str, object] = {
        "clip_selection": draw(st.sampled_from(["start", "middle", "random", "all"])),
        "bucket_strategy": draw(st.sampled_from(["aspect_ratio", "resolution_frames"])),
        "frame_interval": draw(st.integers(1, 20)),
        "min_frames": draw(st.integers(1, 20)),
    }
    if draw(st.booleans()):
        options["num_frames"] = draw(st.integers(1, 30)) * 4 + 1
    if draw(st.booleans()):
        options["max_frames"] = draw(st.integers(20, 200))
    if draw(st.booleans()):
        options["continuation_frames"] = draw(st.sampled_from([5, 9, 13]))
        options["num_frames"] = draw(st.integers(4, 30)) * 4 + 1
    return options


@st.composite
def entries(draw: st.DrawFn) -> DatasetEntry:
    video = draw(videos())
    kind = draw(st.sampled_from(["pixel", "pixel_area", "area"]))
    keys: dict[str, object] = {
        "resolution_type": kind,
        "resolution": draw(st.floats(0.05, 2) if kind == "area" else st.integers(64, 1080)),
        "bucket_table": draw(st.sampled_from([None, None, "official_480p", "official_720p"])),
        "crop_style": draw(st.sampled_from(["center", "corner", "random"])),
        "crop_aspect": draw(st.sampled_from(["preserve", "square", "closest", "random"])),
        "max_upscale_threshold": draw(st.none() | st.floats(0, 3)),
        "minimum_aspect_ratio": draw(st.none() | st.floats(0.1, 1)),
        "allow_short": draw(st.booleans()),
        "max_num_samples": draw(st.none() | st.integers(1, 8)),
    }
    if keys["crop_aspect"] in {"closest", "random"}:
        keys["crop_aspect_buckets"] = draw(st.lists(st.floats(0.2, 5), min_size=1, max_size=4))
    asked = "continuation" if "continuation_frames" in video else draw(st.sampled_from(["t2v", "i2v"]))
    others = {task: st.just(0) | SHARES for task in ("t2v", "i2v") if task != asked}
    mixes = st.fixed_dictionaries({asked: SHARES}, optional=others)
    keys["task_mix"] = draw(st.none() | mixes)
    return entry(video=video, **keys)


@st.composite
def folders(draw: st.DrawFn) -> list[ClipRecord]:
    """Up to eight files of different names."""
    return [draw(records(number)) for number in range(draw(st.integers(1, 8)))]


@st.composite
def plans(draw: st.DrawFn) -> tuple[DatasetEntry, DatasetPlan]:
    """A dataset and its plan."""
    chosen, framerate, seed = draw(entries()), draw(RATES), draw(SEEDS)
    return chosen, plan_dataset(chosen, manifest(*draw(folders())), framerate=framerate, seed=seed)


@deterministic
@given(plans())
def test_every_file_is_used_refused_or_left_out(made):
    chosen, plan = made
    assert plan.found == plan.used + len(plan.refusals) + plan.left_out
    assert plan.used == len({clip.record.name for clip in plan.clips})
    assert plan.used <= (chosen.max_num_samples or plan.found)
    assert plan.left_out == 0 or plan.used == chosen.max_num_samples
    assert len({clip_id(clip) for clip in plan.clips}) == len(plan.clips)
    assert [clip.record.name for clip in plan.clips] == sorted(clip.record.name for clip in plan.clips)


@deterministic
@given(plans())
def test_every_bucket_is_on_its_grid_and_no_larger_than_allowed(made):
    chosen, plan = made
    for clip in plan.clips:
        width, height = clip.bucket.width, clip.bucket.height
        if chosen.bucket_table is None:
            assert width % GRID == height % GRID == 0
            assert min(width, height) >= GRID
        else:
            sizes = {(wide, high) for _, high, wide in OFFICIAL_SIZES[chosen.bucket_table]}
            assert (width, height) in sizes
        if chosen.max_upscale_threshold is not None:
            most = 1 + chosen.max_upscale_threshold
            assert width <= clip.record.width * most + 1e-6
            assert height <= clip.record.height * most + 1e-6


@deterministic
@given(plans())
def test_every_window_lies_inside_its_clip(made):
    _, plan = made
    for clip in plan.clips:
        length = clip.bucket.num_frames
        available = resampled_frames(clip.record.seconds, clip.framerate)
        assert length % 4 == 1
        assert length == 1 or clip.record.kind != "image"
        assert clip.windows
        assert all(0 <= start <= available - length for start in clip.windows)
        assert clip.windows == tuple(sorted(set(clip.windows)))
        for start in clip.windows:
            times = clip.picks(start).times
            assert len(times) == length
            # iter_frames refuses a time that is more than a millisecond beyond the end.
            assert 0 <= times[0] <= times[-1] <= clip.record.seconds + 1e-3
            assert list(times) == sorted(times)


@deterministic
@given(plans())
def test_windows_of_all_are_consecutive_and_leave_less_than_one(made):
    chosen, plan = made
    if chosen.video.clip_selection != "all":
        assert all(clip.number is None for clip in plan.clips)
        return
    for first, second in pairwise(clip for clip in plan.clips if clip.number is not None):
        if first.record == second.record:
            assert second.number == first.number + 1
            assert second.windows == (first.windows[0] + first.bucket.num_frames,)
        else:
            assert (second.number, second.windows) == (1, (0,))


@deterministic
@given(plans())
def test_tasks_share_all_batches_and_leave_something_to_learn(made):
    chosen, plan = made
    tasks = tasks_of(chosen)
    assert sum(task.share for task in tasks) == pytest.approx(1)
    assert all(task.share > 0 for task in tasks)
    assert [task.num_cond_latents for task in tasks] == sorted({task.num_cond_latents for task in tasks})
    for clip in plan.clips:
        assert clip.tasks == tasks
        assert clip.bucket.num_frames > max(given_frames(task) for task in tasks)


@deterministic
@given(plans(), PLACES)
def test_crop_lies_inside_the_smallest_cover(made, place):
    _, plan = made
    for clip in plan.clips:
        source, target = (clip.record.width, clip.record.height), (clip.bucket.width, clip.bucket.height)
        cover = cover_size(*source, *target)
        assert cover[0] >= target[0]
        assert cover[1] >= target[1]
        assert cover[0] == target[0] or cover[1] == target[1]
        # The aspect ratio is kept to half a pixel of the longer side.
        scale = max(target[0] / source[0], target[1] / source[1])
        assert abs(cover[0] - source[0] * scale) <= 0.5 + 1e-6
        assert abs(cover[1] - source[1] * scale) <= 0.5 + 1e-6
        for at in (place, clip.crop, (0.0, 0.0), (1.0, 1.0)):
            assert all(0 <= share <= 1 for share in at)
            rows, columns = crop_slices(*cover, *target, at)
            assert 0 <= columns.start < columns.stop <= cover[0]
            assert 0 <= rows.start < rows.stop <= cover[1]
            assert (columns.stop - columns.start, rows.stop - rows.start) == target


@deterministic
@given(entries(), folders(), RATES, SEEDS)
def test_a_file_is_planned_the_same_whatever_lies_beside_it(chosen, files, framerate, seed):
    every = chosen.model_copy(update={"max_num_samples": None})
    alone = [
        clip
        for file in files
        for clip in plan_dataset(every, manifest(file), framerate=framerate, seed=seed).clips
    ]
    assert list(plan_dataset(every, manifest(*files), framerate=framerate, seed=seed).clips) == alone
    fewer = plan_dataset(chosen, manifest(*files), framerate=framerate, seed=seed).clips
    assert set(map(clip_id, fewer)) <= set(map(clip_id, alone))
