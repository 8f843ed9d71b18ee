"""Pictures read by decord, on the files where it is known to read the right ones.

decord seeks without looking: on open GOPs, HEVC and MPEG-TS it returns other frames than asked for, on
damaged files patched ones, and never an error (decord 0.6.0, frame numbers burnt into the picture). So it
reads only what PyAV has decoded without complaint, and its first picture must equal PyAV's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.video_packets import PacketTable
from longcat_tune.errors import ConfigError

CODECS = ("h264", "mpeg4", "vp8", "vp9")
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
USE_PYAV = 'set video_backend to "pyav"'


def require_decord_reads(table: PacketTable, frame: Any) -> None:
    """Refuse files on which decord returns wrong frames or colours, or none.

    Args:
        table: of the file.
        frame: any of its frames, from PyAV.

    Raises:
        UnusableFileError: naming what decord cannot cope with.
        ConfigError: decord is not installed.
    """
    _import_decord()
    if table.codec not in CODECS:
        trouble = f"its codec is {table.codec}"
    elif table.container not in CONTAINERS:
        trouble = f"its container is {table.container}"
    elif table.open_gop:
        trouble = "it has open GOPs"
    elif frame.format.name not in PIXEL_FORMATS:
        trouble = f"its pixel format is {frame.format.name}"
    elif frame.rotation or table.pixel_aspect != 1:
        trouble = "it is rotated or its pixels are not square"
    else:
        return
    raise _refused(table, trouble)


def decord_pictures(
    table: PacketTable, frames: Iterator[Any], *, convert: Callable[[Any], NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield decord's HW3 picture of every frame that PyAV decodes.

    Args:
        table: of the file.
        frames: from `decode_frames`; only the first one after each keyframe is converted and compared.
        convert: PyAV frame to HW3 picture.

    Raises:
        UnusableFileError: decord cannot read this file, or reads something else than PyAV.
        ConfigError: decord is not installed.
    """
    first = next(frames)
    require_decord_reads(table, first)
    # Opened by whoever reads and never kept: a reader from before a fork hangs in the child.
    read = _open(table)
    checked_key = None
    for frame in chain([first], frames):
        picture = read(bisect_left(table.moments, frame.pts))
        # decord seeks anew at every keyframe that it passes; after a right seek it decodes the right frames.
        key = table.starts(frame.pts)[0]
        if key != checked_key and not np.array_equal(picture, convert(frame)):
            raise _refused(table, f"its picture at {table.time(frame.pts):.2f} s differs from PyAV's")
        checked_key = key
        yield picture


def _import_decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise ConfigError(
            "video_backend (decord) needs the package decord, which is not installed; "
            f"install it (pip install 'longcat-tune[decord]') or {USE_PYAV}"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _open(table: PacketTable) -> Callable[[int], NDArray[np.uint8]]:
    """The function from a frame's number to decord's picture of it."""
    decord = _import_decord()
    failures = (decord.DECORDError, IndexError, RuntimeError)
    try:
        reader = decord.VideoReader(str(table.path.absolute()))
    except failures as error:
        raise _refused(table, "it cannot open the file") from error

    def read(index: int) -> NDArray[np.uint8]:
        try:
            picture: NDArray[np.uint8] = reader[index].asnumpy()
        except failures as error:
            raise _refused(table, f"it fails at {table.time(table.moments[index]):.2f} s") from error
        return picture

    return read


def _refused(table: PacketTable, trouble: str) -> UnusableFileError:
    return UnusableFileError(table.path, f"cannot be read with decord: {trouble}", USE_PYAV)
