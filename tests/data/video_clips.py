"""Clips of every codec and container, what decord says to each, and which frames a plan must take of them."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, cycle, islice
from pathlib import Path

import av
import numpy as np
import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import scan
from longcat_tune.data.planning import DatasetPlan, plan_dataset
from longcat_tune.data.video import VideoBackend
from longcat_tune.errors import UserError
from tests.media_builders import (
    AV1,
    H264,
    HEVC,
    INTRA_REFRESH,
    MPEG4,
    OPEN_GOP,
    TINY_OPEN_GOP,
    VP8,
    VP9,
    read_frames,
)

FRAMES = 60
VARIABLE_TICKS = list(accumulate(islice(cycle((1500, 3000, 6000, 4500)), FRAMES)))

CLIPS = {
    "h264.mp4": H264,
    "h264.mkv": H264,
    "h264.ts": H264,
    "fragmented.mp4": H264 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "variable.mp4": H264 | {"ticks": VARIABLE_TICKS},
    "open_gop.mp4": OPEN_GOP,
    "tiny_open_gop.mp4": TINY_OPEN_GOP,
    "intra_refresh.mp4": INTRA_REFRESH,
    "hevc.mp4": HEVC,
    "vp8.webm": VP8,
    "vp9.webm": VP9,
    "unindexed.webm": VP9 | {"container_options": {"live": "1"}},
    "av1.mp4": AV1,
    "mpeg4.avi": MPEG4,
    "mpeg1.mpg": MPEG4 | {"codec": "mpeg1video"},
    "mpeg2.mpg": MPEG4 | {"codec": "mpeg2video"},
    "full_range.mp4": H264 | {"pix_fmt": "yuvj420p"},
    "ten_bit.mp4": H264 | {"pix_fmt": "yuv420p10le"},
}
REFUSED_BY_DECORD = {
    "h264.ts": "its container is mpegts",
    "open_gop.mp4": "it has open GOPs",
    "tiny_open_gop.mp4": "it has open GOPs",
    "hevc.mp4": "its codec is hevc",
    "unindexed.webm": "it cannot open the file",
    "av1.mp4": "its codec is av1",
    "mpeg4.avi": "its container is avi",
    "mpeg1.mpg": "its codec is mpeg1video",
    "mpeg2.mpg": "its codec is mpeg2video",
    "ten_bit.mp4": "its pixel format is yuv420p10le",
}


def message_of(path: Path, frame_times=(0.0,), **options) -> str:
    """The whole message that reading ends with, the folder left out."""
    with pytest.raises(UserError) as caught:
        read_frames(path, frame_times, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


def windows(num_frames: int, count: int = 12) -> list[range]:
    """Windows of nine frames, every frame or every second one, from the whole clip."""
    starts = np.random.default_rng(0).integers(0, num_frames - 18, count)
    return [range(int(start), int(start) + 9 * step, step) for start, step in zip(starts, cycle((1, 2)))]


def plan_folder(folder: Path, *, framerate: float, backend: VideoBackend = "auto", **keys) -> DatasetPlan:
    entry = DatasetEntry(id="clips", instance_data_dir=folder, **{"caption_strategy": None} | keys)
    return plan_dataset(entry, scan(entry, backend=backend), framerate=framerate, seed=1)


def source_times(path: Path) -> list[Fraction]:
    """When each frame is shown, exactly, from the first."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = sorted({packet.pts * packet.time_base for packet in packets})
    return [time - times[0] for time in times]


def nearest_frames(times: list[Fraction], window: range, framerate: int) -> list[int]:
    """The source frame nearest to each frame of a window; of two as near, the earlier."""
    wanted = [Fraction(index, framerate) for index in window]
    return [min(range(len(times)), key=lambda frame: (abs(times[frame] - time), frame)) for time in wanted]
