"""Pictures of chosen frames, decoded by PyAV: the right one or an error, never a patched one.

Knows the moments of a PacketTable; nothing of wanted seconds, resampling or other readers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video_packets import PacketTable, open_video

NEARLY_SQUARE = 0.02
"""Pixels this close to square are taken as square: encoders write such shapes when they round a size."""
TO_BT709 = "export it with BT.709 colours or take it out of the folder"
CUT_OUT = "copy or export it again, or cut the damaged part out"


def decode_frames(table: PacketTable, moments: Sequence[int]) -> Iterator[Any]:
    """Decode the frames of the given moments, starting as near to the first as the file allows.

    Args:
        table: of the file.
        moments: ascending, without repetition, each from table.moments.

    Yields:
        PyAV frames, one per moment.

    Raises:
        UnusableFileError: damage within reach of these frames.
    """
    asked = set(moments)
    wanted = deque(sorted(asked | {table.horizon(moments[-1])}))
    for start in table.starts(moments[0]):
        frames = _taken(table, wanted, _decode_from(table, start))
        yield from (frame for frame in frames if frame.pts in asked)
        if not wanted:
            return
    raise _damaged(table, wanted[0])


def rgb_converter(table: PacketTable) -> Callable[[Any], NDArray[np.uint8]]:
    """Make the function that turns PyAV frames of one file into HW3 pictures as a player shows them.

    The function raises UnusableFileError for a frame that FFmpeg cannot convert.
    """
    # One converter for all frames: a new one per frame costs 40 ms more at 4K.
    converter = VideoReformatter()
    stretch = table.pixel_aspect if abs(table.pixel_aspect - 1) > NEARLY_SQUARE else 1

    def convert(frame: Any) -> NDArray[np.uint8]:
        try:
            rgb = converter.reformat(frame, width=round(frame.width * stretch), format="rgb24")
        except av.FFmpegError as error:
            reason = f"has pictures that cannot be converted to RGB ({error.strerror})"
            raise UnusableFileError(table.path, reason, TO_BT709) from error
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), round(frame.rotation / 90)))

    return convert


def _taken(table: PacketTable, wanted: deque[int], frames: Iterator[Any]) -> Iterator[Any]:
    """Yield the wanted frames as they pass, and stop when all have come or one has not."""
    for frame in frames:
        if frame.is_corrupt:
            raise _damaged(table, frame.pts)
        if frame.pts == wanted[0]:
            wanted.popleft()
            yield frame
        if not wanted or frame.pts > wanted[0]:
            return


def _decode_from(table: PacketTable, start: int | None) -> Iterator[Any]:
    """Decode all frames from a keyframe, or the head, to the end of the file or the first error."""
    with open_video(table.path) as (container, stream):
        # One thread: with several, errors come late and without their place, and patched H.264 pictures pass
        # as whole. Two are not faster either (4K H.264 on two cores: 26 ms per frame instead of 23).
        stream.thread_count = 1
        moment = table.moments[0]
        try:
            for packet in _packets_from(table, start, container, stream):
                moment = packet.pts if packet.size else moment
                yield from packet.decode()
        except av.FFmpegError as error:
            # The decoder still holds back pictures that it finished before the damage, or fails once more.
            with suppress(av.FFmpegError):
                yield from stream.codec_context.decode(None)
            raise _damaged(table, moment) from error


def _packets_from(table: PacketTable, start: int | None, container: Any, stream: Any) -> Iterator[Any]:
    """Seek and read on, as long as the packets are those of the table.

    In MPEG program streams they come with other times after a seek, so that frames would be mistaken.
    """
    if start is not None:
        container.seek(start, stream=stream)
    for packet in container.demux(stream):
        if start is not None and packet.size and table.sizes.get(packet.pts) != packet.size:
            return
        yield packet


def _damaged(table: PacketTable, moment: int) -> UnusableFileError:
    return UnusableFileError(table.path, f"is damaged at {table.time(moment):.2f} s", CUT_OUT)
