"""What the owner of a dataset should know about its plan: clips enlarged, frames repeated, footage unused.

Everything here is allowed; each fact is told once per dataset, with a count and the worst one or two files.
Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nlargest, nsmallest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.framing import SMALLER_BUCKETS, enlargement
from longcat_tune.data.naming import some
from longcat_tune.data.windows import resampled_frames, whole_windows
from longcat_tune.types import TEMPORAL_STRIDE, Bucket, ClipRecord, Notice, PlannedClip

NAMED = 2
"""Files that a notice names."""
LISTED = 4
"""Sizes or frame rates that a notice lists, the most frequent first."""
NEARLY_EQUAL = 0.01
"""Frame rates are averages, rounded to this."""

FileClips = Sequence[PlannedClip]
"""The clips of one file: one, or several under clip_selection all; never none."""
Fact = tuple[str, str]
"""What was found, and what to do if it is not meant."""


def plan_notices(
    entry: DatasetEntry, files: Sequence[FileClips], *, framerate: float, left_out: int, unpaired: bool
) -> tuple[Notice, ...]:
    """Everything worth telling about the plan of a dataset.

    Args:
        entry: the dataset.
        files: the clips of each file that is used.
        framerate: frames per second that clips are resampled to.
        left_out: files beyond max_num_samples.
        unpaired: whether start images are given that no task takes.
    """
    facts = [
        *_unpaired(entry, unpaired),
        *_left_out(entry, left_out),
        *_enlarged(entry, [(clip.record, clip.bucket) for clip, *_ in files], "files"),
        *_enlarged(
            entry,
            [(image, clip.bucket) for clip, *_ in files if (image := clip.record.conditioning) is not None],
            "start images",
        ),
        *_sizes(entry, files),
        *_rates(files, framerate),
        *_short(entry, files),
        *_footage(entry, files, framerate),
    ]
    return tuple(Notice(entry.id, fact, remedy) for fact, remedy in facts)


def _unpaired(entry: DatasetEntry, unpaired: bool) -> Iterator[Fact]:
    if unpaired:
        names = ", ".join(entry.conditioning_data)
        fact = f"conditioning_data ({names}) has no effect: no task takes a start image"
        yield fact, "set is_i2v to true, give i2v a share in task_mix, or remove conditioning_data"


def _left_out(entry: DatasetEntry, left_out: int) -> Iterator[Fact]:
    if left_out:
        fact = f"files left out by max_num_samples ({entry.max_num_samples}), chosen by the seed: {left_out}"
        yield fact, "raise max_num_samples or set it to null to use them"


def _enlarged(
    entry: DatasetEntry, pictures: Sequence[tuple[ClipRecord, Bucket]], what: str
) -> Iterator[Fact]:
    enlarged = [
        (enlargement(record, bucket), record, bucket)
        for record, bucket in pictures
        if bucket.width > record.width or bucket.height > record.height
    ]
    if enlarged:
        worst = nlargest(NAMED, enlarged, key=lambda one: one[0])
        named = ", ".join(
            f"{record.name} by {share:.1%} ({_size(record.width, record.height)} to "
            f"{_size(bucket.width, bucket.height)})"
            for share, record, bucket in worst
        )
        fact = f"{what} enlarged to fill their bucket: {len(enlarged)} of {len(pictures)}, most {named}"
        yield fact, f"{SMALLER_BUCKETS[entry.bucket_table]}, or set max_upscale_threshold to refuse them"


def _sizes(entry: DatasetEntry, files: Sequence[FileClips]) -> Iterator[Fact]:
    sources = Counter((clip.record.width, clip.record.height) for clip, *_ in files)
    if len(sources) < 2:
        return
    buckets = Counter((clip.bucket.width, clip.bucket.height) for clip, *_ in files)
    fact = f"files of {len(sources)} sizes: {_size_counts(sources)}; brought to {_size_counts(buckets)}"
    if entry.crop_aspect == "preserve" and len(buckets) > 1:
        yield fact, "set crop_aspect to square or closest for fewer buckets"
    else:
        yield fact, "give them datasets of their own, each with its resolution"


def _rates(files: Sequence[FileClips], framerate: float) -> Iterator[Fact]:
    """Files of which frames are left out or repeated on their way to framerate."""
    faster: list[ClipRecord] = []
    slower: list[ClipRecord] = []
    for clip, *_ in files:
        surplus = clip.record.source_frames - clip.record.seconds * framerate
        # Less than half a frame in the whole file is rounding, or 29.97 for 30.
        if clip.record.kind != "image" and abs(surplus) > 1 / 2:
            (faster if surplus > 0 else slower).append(clip.record)
    if faster:
        fact = f"files above framerate ({framerate:g}), of which frames are left out"
        remedy = "raise framerate to use more of their frames"
        yield f"{fact}: {_rate_counts(faster, framerate)}", remedy
    if slower:
        lowest = nsmallest(NAMED, slower, key=lambda record: record.fps)
        named = ", ".join(f"{record.name} ({_rate(record):g} fps)" for record in lowest)
        fact = f"files below framerate ({framerate:g}), of which frames are repeated"
        remedy = f"lower framerate; at {_rate(lowest[0]):g} no frame is repeated"
        yield f"{fact}: {_rate_counts(slower, framerate)}; slowest {named}", remedy


def _short(entry: DatasetEntry, files: Sequence[FileClips]) -> Iterator[Fact]:
    video = entry.video
    if not entry.allow_short or video.bucket_strategy != "aspect_ratio":
        return
    short = [
        clip
        for clip, *_ in files
        if clip.bucket.num_frames < video.num_frames and clip.record.kind != "image"
    ]
    if short:
        shortest = nsmallest(NAMED, short, key=lambda clip: clip.bucket.num_frames)
        named = ", ".join(f"{clip.record.name} ({clip.bucket.num_frames})" for clip in shortest)
        fact = (
            f"files shorter than video.num_frames ({video.num_frames}) that train at their own length: "
            f"{len(short)} of {len(files)}, shortest {named}"
        )
        yield fact, "set allow_short to false to refuse them"


def _footage(entry: DatasetEntry, files: Sequence[FileClips], framerate: float) -> Iterator[Fact]:
    """How much of the files no window shows; frames are counted after resampling."""
    total, unused, more_fit = 0, [], False
    for clips in files:
        record, num_frames = clips[0].record, clips[0].bucket.num_frames
        if record.kind == "image":
            continue
        available = resampled_frames(record.seconds, framerate)
        missed = available - _shown_frames(clips)
        total += available
        if missed:
            unused.append((missed, record.name))
            more_fit = more_fit or whole_windows(entry.video, available, num_frames) > 1
    if unused:
        selection = entry.video.clip_selection
        missed = sum(frames for frames, _ in unused)
        worst = nlargest(NAMED, unused, key=lambda pair: pair[0])
        named = ", ".join(f"{name} ({frames / framerate:.2f} s)" for frames, name in worst)
        where = "after the last whole window" if selection == "all" else "outside the windows"
        fact = (
            f"footage {where} (video.clip_selection {selection}): {missed / framerate:.2f} s "
            f"({missed / total:.1%}) in {len(unused)} of {len(files)} files, most {named}"
        )
        yield fact, _more_footage(entry, worst[0][0], more_fit=more_fit and selection != "all")


def _more_footage(entry: DatasetEntry, most: int, *, more_fit: bool) -> str:
    """How more of it is used.

    Args:
        entry: the dataset.
        most: frames that no window shows, of the worst file.
        more_fit: whether some files have room for further windows.
    """
    if most < TEMPORAL_STRIDE:
        return "nothing to do: a clip has 4k + 1 frames"
    if not more_fit:
        return "no further window fits; lower video.num_frames or video.frame_interval to use more"
    if entry.conditioning_data:
        return "cut the files into shorter ones, each with its start image"
    return "set video.clip_selection to all to use every whole window"


def _shown_frames(clips: FileClips) -> int:
    """Frames that at least one window of the file shows."""
    shown = end = 0
    for clip in clips:
        for start in clip.windows:
            stop = start + clip.bucket.num_frames
            shown += stop - max(start, end)
            end = stop
    return shown


def _rate_counts(records: Sequence[ClipRecord], framerate: float) -> str:
    """`60 fps (8, one frame in 4), 25 fps (2, the nearest frames)`."""
    rates = Counter(_rate(record) for record in records)
    told = (f"{rate:g} fps ({count}, {_conversion(rate, framerate)})" for rate, count in rates.most_common())
    return some(told, LISTED)


def _conversion(rate: float, framerate: float) -> str:
    """Which frames of a regular file are taken, in words."""
    step, times = round(rate / framerate), round(framerate / rate)
    if step > 1 and abs(step * framerate - rate) < NEARLY_EQUAL:
        return f"one frame in {step}"
    if times > 1 and abs(times * rate - framerate) < NEARLY_EQUAL:
        return f"every frame {times} times"
    return "the nearest frames"


def _rate(record: ClipRecord) -> float:
    return round(record.fps, 2)


def _size_counts(sizes: Counter[tuple[int, int]]) -> str:
    return some((f"{_size(*size)} ({count})" for size, count in sizes.most_common()), LISTED)


def _size(width: int, height: int) -> str:
    return f"{width}x{height}"
