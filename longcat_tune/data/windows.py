"""How many frames a clip is encoded at, and where in the file they lie.

Lengths are 4k + 1. Frames are counted at the run's frame rate: number i is the one shown at i / framerate.
"""

from __future__ import annotations

import math
from functools import cache

from longcat_tune.config.datasets import DatasetEntry, VideoOptions
from longcat_tune.data.buckets import clip_length
from longcat_tune.data.lots import shares
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import ClipRecord

LAST_FRAME_SHARE = 0.9
"""How much of a frame's time must be left for the last frame to count; mkv and webm round times to 1 ms."""
RANDOM_WINDOWS = 8
"""Each window of a clip is encoded and cached, so a clip takes turns with a few instead of drawing anew."""


def resampled_frames(seconds: float, framerate: float) -> int:
    """How many frames a clip has at another frame rate; at least the one that is shown at its start."""
    return max(1, math.floor(seconds * framerate + 1 - LAST_FRAME_SHARE))


def frame_limit(video: VideoOptions) -> int | None:
    """The length that longer clips are cut to; None: they keep their own."""
    if video.bucket_strategy == "aspect_ratio":
        return video.num_frames
    limits = [video.max_frames, video.num_frames if video.num_frames_given else None]
    return min((limit for limit in limits if limit is not None), default=None)


def encoded_frames(record: ClipRecord, entry: DatasetEntry, available: int, *, framerate: float) -> int:
    """How many frames a clip of this file is encoded at: 1 for an image, else 4k + 1.

    Args:
        record: the file.
        entry: its dataset.
        available: frames after resampling.
        framerate: that they were resampled to; for messages.

    Raises:
        UnusableFileError: it is too short or too long.
    """
    if record.kind == "image":
        return 1
    video = entry.video
    has = f"has {available} frames at {framerate:g} fps"
    if available < video.min_frames:
        reason = f"{has}, fewer than video.min_frames ({video.min_frames})"
        raise UnusableFileError(record.path, reason, "take a longer clip or lower video.min_frames")
    if video.bucket_strategy == "resolution_frames":
        return clip_length(min(available, frame_limit(video) or available), interval=video.frame_interval)
    if video.max_frames is not None and available > video.max_frames:
        reason = f"{has}, more than video.max_frames ({video.max_frames})"
        raise UnusableFileError(record.path, reason, "cut the clip or raise video.max_frames")
    if available >= video.num_frames:
        return video.num_frames
    if not entry.allow_short:
        reason = f"{has}, fewer than video.num_frames ({video.num_frames})"
        remedy = (
            f"lower video.num_frames to {clip_length(available)}, set allow_short to true, "
            'or set video.bucket_strategy to "resolution_frames"'
        )
        raise UnusableFileError(record.path, reason, remedy)
    return clip_length(available)


def window_starts(
    video: VideoOptions, *, available: int, num_frames: int, name: str, seed: int
) -> tuple[int, ...]:
    """The first frame of each window of a file, ascending.

    `random` draws at most 8; a file with fewer places for a window has one at each. `all` lays whole windows
    end to end; what remains after the last is no clip, not even with allow_short, which is for files that
    are short as a whole.

    Args:
        video: how windows are selected.
        available: frames of the file after resampling.
        num_frames: frames of a window, at most available.
        name: of the file; draws depend on it and on the seed alone.
        seed: of the run.
    """
    spare = available - num_frames
    match video.clip_selection:
        case "start":
            return _one_window(0)
        case "middle":
            return _one_window(spare // 2)
        case "random":
            return _drawn(spare + 1, name, seed)
        case "all":
            return _end_to_end(whole_windows(video, available, num_frames), num_frames)


def whole_windows(video: VideoOptions, available: int, num_frames: int) -> int:
    """How many windows fit into a file end to end.

    One where the file is shorter than the length set, or where none is set: resolution_frames without
    num_frames or max_frames takes each file as a whole.
    """
    limit = frame_limit(video)
    return 1 if limit is None or available < limit else available // num_frames


@cache
def _one_window(start: int) -> tuple[int, ...]:
    """One tuple for all clips whose window starts there."""
    return (start,)


@cache
def _end_to_end(count: int, num_frames: int) -> tuple[int, ...]:
    return tuple(range(0, count * num_frames, num_frames))


def _drawn(places: int, name: str, seed: int) -> tuple[int, ...]:
    """At most 8 of so many places; fewer draws would give the first of the same."""
    if places <= RANDOM_WINDOWS:
        return tuple(range(places))
    starts: set[int] = set()
    for share in shares(seed, name, "window"):
        starts.add(int(share * places))
        if len(starts) == RANDOM_WINDOWS:
            break
    return tuple(sorted(starts))
