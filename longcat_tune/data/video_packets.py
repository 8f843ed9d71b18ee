"""One pass over a video's packets: which frames it holds, when they are shown, where decoding can start.

Decodes nothing. Times come from the presentation time of every packet, never from a frame rate.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

import av

from longcat_tune.data.refusals import REPLACE, UnusableFileError

COPY_AGAIN = "copy or export it again"

TIE_SECONDS = 1e-6
"""Closer than this, two distances in time are equal; far below any frame, far above rounding of a double."""
MISSING_SECONDS, MISSING_SHARE = 0.25, 0.01
"""How much shorter than announced a whole file may be; muxers round and pad the length that they announce."""

BOX_HEADER = Struct(">I4sQ")
"""Length, kind, and the length of a box that is too long for 32 bits; of any other box its first bytes."""
OPEN_BOX, LARGE_BOX, SHORTEST_BOX = 0, 1, 8
"""Lengths that say: to the end of the file; see the other length; nothing but a length and a kind."""


@dataclass(frozen=True, slots=True)
class PacketTable:
    """The frames of a video as its packets announce them; moments are in units of time_base.

    Attributes:
        path: the file.
        container: FFmpeg's name of the file format.
        codec: FFmpeg's name of the codec.
        time_base: seconds per unit.
        moments: when each frame is shown, ascending.
        stored: the same in the order in which the file stores and the decoder needs them.
        keys: the moments of keyframes, ascending.
        sizes: bytes of every packet by its moment, hidden ones included; tells them apart after a seek.
        last_duration: how long the last frame is shown.
        open_gop: some frames shown before a keyframe are stored after it and need what lies before it.
        pixel_aspect: width by height of one pixel.
    """

    path: Path
    container: str
    codec: str
    time_base: Fraction
    moments: tuple[int, ...]
    stored: tuple[int, ...]
    keys: tuple[int, ...]
    sizes: Mapping[int, int]
    last_duration: int
    open_gop: bool
    pixel_aspect: Fraction

    @property
    def seconds(self) -> float:
        """From the first frame's appearance to the last one's end."""
        return self.time(self.moments[-1] + self.last_duration)

    def time(self, moment: int) -> float:
        """Seconds after the first frame's appearance."""
        return float((moment - self.moments[0]) * self.time_base)

    def nearest(self, time: float) -> int:
        """The moment of the frame nearest to a time in seconds; of two as near, the earlier."""
        right = min(bisect_left(self.moments, time, key=self.time), len(self.moments) - 1)
        left = max(right - 1, 0)
        before, after = time - self.time(self.moments[left]), self.time(self.moments[right]) - time
        return self.moments[right if after < before - TIE_SECONDS else left]

    def horizon(self, moment: int) -> int:
        """The last shown of the frames that are stored up to this one, so that it may build on them."""
        return max(self.stored[: self.stored.index(moment) + 1])

    def starts(self, moment: int) -> tuple[int | None, ...]:
        """Where to start decoding to reach a frame, the best first; None is the head of the file.

        The keyframe at or before it is enough, unless the container's index leads elsewhere (mp4 seeks by
        decoding time) or the decoder drops frames after a seek: then the one before that, then the head.
        """
        reachable = bisect_right(self.keys, moment)
        return (*reversed(self.keys[max(reachable - 2, 0) : reachable]), None)


def read_packets(path: Path) -> PacketTable:
    """Read every packet of a video once.

    Raises:
        UnusableFileError: the file is unreadable, holds no frames, is cut off, or does not time its frames.
    """
    with open_video(path) as (container, stream):
        packets = list(_packets(path, container, stream))
        video = [packet for packet in packets if packet.of_video]
        shown = [packet for packet in video if not packet.is_discard]
        if not shown:
            raise UnusableFileError(path, "holds no video frames", REPLACE)
        if _is_untimed_avi(container, stream, video):
            raise _untimed(path)
        _require_whole(path, packets, announced=_announced(container, stream))
        if "mp4" in container.format.name:
            _require_all_bytes(path)
        moments = sorted({packet.moment for packet in shown})
        return PacketTable(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            time_base=stream.time_base,
            moments=tuple(moments),
            stored=tuple(packet.moment for packet in shown),
            keys=tuple(sorted(packet.moment for packet in video if packet.is_key)),
            sizes={packet.moment: packet.size for packet in video},
            last_duration=_last_duration(moments, shown, stream),
            open_gop=_has_open_gop(video),
            pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
        )


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file for the block and give its container and its main video stream.

    Raises:
        UnusableFileError: it is no video, or none that can be decoded here.
    """
    try:
        # Absolute, because FFmpeg takes a name with a colon for a protocol. Titles and the like need not be
        # UTF-8, and nobody here reads them.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnusableFileError(path, f"cannot be read as a video ({error.strerror})", REPLACE) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise UnusableFileError(path, "holds no video that can be decoded", REPLACE)
        yield container, stream


class _Packet(NamedTuple):
    """What is kept of a packet; start and end are in seconds on the file's own clock."""

    moment: int
    size: int
    duration: int
    start: float
    end: float
    of_video: bool
    is_key: bool
    is_corrupt: bool
    is_discard: bool


def _packets(path: Path, container: Any, stream: Any) -> Iterator[_Packet]:
    """The timed packets of all streams, in the order of decoding."""
    try:
        for packet in container.demux():
            of_video = packet.stream_index == stream.index
            if packet.pts is not None:
                yield _Packet(
                    moment=packet.pts,
                    size=packet.size,
                    duration=packet.duration or 0,
                    start=float(packet.pts * packet.time_base),
                    end=float((packet.pts + (packet.duration or 0)) * packet.time_base),
                    of_video=of_video,
                    is_key=packet.is_keyframe,
                    is_corrupt=packet.is_corrupt,
                    is_discard=packet.is_discard,
                )
            elif of_video and packet.size:
                raise _untimed(path)
    except av.FFmpegError as error:
        raise UnusableFileError(path, f"is damaged ({error.strerror})", COPY_AGAIN) from error


def _untimed(path: Path) -> UnusableFileError:
    remedy = f'convert it: ffmpeg -i "{path.name}" -c:v libx264 -crf 12 "{path.stem}_timed.mp4"'
    return UnusableFileError(path, "does not say when its frames are shown", remedy)


def _is_untimed_avi(container: Any, stream: Any, video: Sequence[_Packet]) -> bool:
    """Whether frames are reordered and FFmpeg only guesses their times: AVI stores none."""
    in_order = all(before.moment < after.moment for before, after in pairwise(video))
    return container.format.name == "avi" and stream.codec_context.has_b_frames and in_order


def _announced(container: Any, stream: Any) -> float:
    """The seconds that a container says it holds.

    Those of an AVI are FFmpeg's guess from the size of the file, which is small when the file is cut off;
    its header has the number of frames.
    """
    seconds: float = (container.duration or 0) / av.time_base
    counted = float(stream.frames * stream.time_base) if container.format.name == "avi" else 0.0
    return max(seconds, counted)


def _require_whole(path: Path, packets: Sequence[_Packet], *, announced: float) -> None:
    """Compare the seconds that the container announces with what its streams hold; look for torn packets."""
    start = min(packet.start for packet in packets)
    held = max(packet.end for packet in packets) - start
    if announced - held > max(MISSING_SECONDS, MISSING_SHARE * announced):
        reason = f"is cut off: it announces {announced:.2f} s and holds {held:.2f} s"
        raise UnusableFileError(path, reason, COPY_AGAIN)
    for packet in packets:
        if packet.of_video and packet.is_corrupt:
            reason = f"is damaged or cut off {packet.start - start:.2f} s after its start"
            raise UnusableFileError(path, reason, COPY_AGAIN)


def _require_all_bytes(path: Path) -> None:
    """Compare the bytes that an mp4 announces with the file's: its data may end between two frames.

    Counting frames proves nothing, for an edit list hides some of them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for kind, end in _boxes(file, size):
            if kind == b"mdat" and end > size:
                reason = f"is cut off: it announces {end:,} bytes and holds {size:,}"
                raise UnusableFileError(path, reason, COPY_AGAIN)


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of every box of an mp4 (ISO 14496-12, 4.2), up to one that leaves its end open."""
    begin = 0
    while begin < size:
        file.seek(begin)
        header = file.read(BOX_HEADER.size)
        if len(header) < BOX_HEADER.size:
            return
        length, kind, large_length = BOX_HEADER.unpack(header)
        if length == OPEN_BOX:
            return
        begin += max(large_length if length == LARGE_BOX else length, SHORTEST_BOX)
        yield kind, begin


def _last_duration(moments: Sequence[int], shown: Sequence[_Packet], stream: Any) -> int:
    """How long the last frame is shown: as its packet says, else like the others, else by the frame rate."""
    announced = next(packet.duration for packet in shown if packet.moment == moments[-1])
    if announced:
        return announced
    if len(moments) > 1:
        return (moments[-1] - moments[0]) // (len(moments) - 1)
    return round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0


def _has_open_gop(video: Sequence[_Packet]) -> bool:
    """Whether any packet after a keyframe, in the order of decoding, is shown before it."""
    key = video[0].moment
    for packet in video:
        if packet.is_key:
            key = packet.moment
        elif packet.moment < key:
            return True
    return False
