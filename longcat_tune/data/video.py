"""The door to video files: what a file holds, the frames nearest to given times, and writing an mp4.

Sizes and pictures are as a player shows them: rotation and pixel shape applied. Knows neither datasets nor
buckets. A picture is the right one or an error; the packets and PyAV's decoder have the last word on that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from longcat_tune.data.refusals import CHANGED, UnusableFileError
from longcat_tune.data.video_decode import decode_frames, rgb_converter
from longcat_tune.data.video_decord import decord_pictures, require_decord_reads
from longcat_tune.data.video_packets import read_packets
from longcat_tune.errors import DataError
from longcat_tune.files import write_atomically

VideoBackend = Literal["auto", "pyav", "decord"]

# With mbtree, x264 gives other bits for the same small pictures now and then (5 files of 20 encodings).
ENCODER_OPTIONS = {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"}
BT709, LIMITED_RANGE = 1, 1
"""FFmpeg's numbers for the colours of HD video; written down, so that no player has to guess."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        width: in pixels as shown.
        height: in pixels as shown.
        codec: FFmpeg's name of the codec.
        seconds: from the first frame's appearance to the last one's end.
        times: when each frame appears, in seconds from the first.
    """

    width: int
    height: int
    codec: str
    seconds: float
    times: tuple[float, ...]

    @property
    def num_frames(self) -> int:
        """Frames in the file."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Frames per second on average; 0 for a single frame without a duration."""
        return self.num_frames / self.seconds if self.seconds else 0.0


def probe(path: Path, *, backend: VideoBackend = "auto") -> VideoInfo:
    """Read all packets and decode the first frame.

    Args:
        path: the video.
        backend: who will read the frames.

    Raises:
        UnusableFileError: unreadable, without frames, cut off, or none that the backend reads correctly.
        ConfigError: decord is asked for and not installed.
    """
    table = read_packets(path)
    first = next(decode_frames(table, table.moments[:1]))
    if backend == "decord":
        require_decord_reads(table, first)
    height, width, _ = rgb_converter(table)(first).shape
    return VideoInfo(
        width=width,
        height=height,
        codec=table.codec,
        seconds=table.seconds,
        times=tuple(table.time(moment) for moment in table.moments),
    )


def iter_frames(
    path: Path, frame_times: Sequence[float], *, backend: VideoBackend = "auto"
) -> Iterator[NDArray[np.uint8]]:
    """Yield the picture nearest to each time, one at a time, so that a long 4K clip never fills memory.

    Args:
        path: the video.
        frame_times: ascending, in seconds from the first frame. Equal distances go to the earlier frame; a
            frame that is nearest to several times is decoded once and yielded as often.
        backend: `decord` reads pictures with decord, and refuses files where it is known to read wrong ones.

    Yields:
        HW3 uint8 RGB.

    Raises:
        UnusableFileError: the file is unusable, damaged within reach of these frames, or too short for them.
        ConfigError: decord is asked for and not installed.
    """
    table = read_packets(path)
    if max(frame_times) > table.seconds + 1e-3:
        reason = f"lasts {table.seconds:.3f} s and has no frame at {max(frame_times):.3f} s"
        raise UnusableFileError(path, reason, CHANGED)
    uses = Counter(table.nearest(time) for time in frame_times)
    frames, convert = decode_frames(table, tuple(uses)), rgb_converter(table)
    if backend == "decord":
        pictures = decord_pictures(table, frames, convert=convert)
    else:
        pictures = (convert(frame) for frame in frames)
    shape: tuple[int, ...] | None = None
    for (moment, times), picture in zip(uses.items(), pictures, strict=True):
        shape = shape or picture.shape
        if picture.shape != shape:
            reason = f"changes its picture size at {table.time(moment):.2f} s"
            raise UnusableFileError(path, reason, "cut it there or export it in one size")
        yield from repeat(picture, times)


def write_mp4(path: Path, frames_FHW3: NDArray[np.uint8], fps: float) -> None:
    """Write an H.264 video that browsers play, without sound; complete or not at all.

    Args:
        path: replaced if it exists.
        frames_FHW3: RGB; height and width even.
        fps: frames per second.

    Raises:
        DataError: an odd size, which 4:2:0 colour cannot hold.
        UserError: the folder is not writable or the disk is full.
    """
    _, height, width, _ = frames_FHW3.shape
    if height % 2 or width % 2:
        raise DataError(
            f"{path} cannot hold {width}x{height} pixels: H.264 needs even sizes; crop by one pixel"
        )
    write_atomically(path, lambda part: _encode(part, frames_FHW3, Fraction(fps).limit_denominator(1001)))


def _encode(path: Path, frames_FHW3: NDArray[np.uint8], rate: Fraction) -> None:
    with av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=ENCODER_OPTIONS)
        stream.height, stream.width = frames_FHW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for picture_HW3 in frames_FHW3:
            frame = av.VideoFrame.from_ndarray(picture_HW3, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
