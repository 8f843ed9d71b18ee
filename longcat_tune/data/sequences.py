"""Folders of numbered pictures as clips: which folders are one, and the pictures nearest to given times.

The frame rate comes from whoever asks, for a picture's name holds none. Knows neither datasets nor buckets.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from longcat_tune.data.images import IMAGE_EXTENSIONS, read_image
from longcat_tune.data.refusals import CHANGED, UnusableFileError
from longcat_tune.data.video_packets import TIE_SECONDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)(?P<extension>\.[^.]+)", re.DOTALL)

RENUMBER = "add what is missing, or number the pictures one after the other"
ONE_SIZE = "export all its pictures in one size"


class NumberedPicture(NamedTuple):
    """One picture of a clip: its number, and its name inside the folder."""

    number: int
    name: str


def numbered_pictures(names: Sequence[str]) -> tuple[NumberedPicture, ...]:
    """Sort the names of a folder by their numbers, if they are the pictures of one clip; else give none.

    They are when there are two or more, all of one image extension, and all alike but for the number that
    ends the stem.

    Args:
        names: everything in the folder that is not hidden.
    """
    matches = []
    kinds = set()
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match is None or match["extension"].lower() not in IMAGE_EXTENSIONS:
            return ()
        kinds.add((match["prefix"], match["extension"].lower()))
        if len(kinds) > 1:
            return ()
        matches.append(NumberedPicture(int(match["number"]), name))
    return tuple(sorted(matches)) if len(matches) > 1 else ()


def require_each_number_once(folder: Path, pictures: Sequence[NumberedPicture]) -> None:
    """Refuse a clip in which a moment is missing or there twice.

    Args:
        folder: of the pictures.
        pictures: by number.

    Raises:
        UnusableFileError: naming the first number in question and its neighbours.
    """
    steps = [(one, other) for one, other in pairwise(pictures) if other.number != one.number + 1]
    if not steps:
        return
    one, other = steps[0]
    if one.number == other.number:
        reason = f"holds two pictures with the number {one.number}: {one.name} and {other.name}"
        raise UnusableFileError(folder, reason, "keep one of them")
    missing = (
        f"number {one.number + 1}"
        if other.number == one.number + 2
        else (f"numbers {one.number + 1} to {other.number - 1}")
    )
    more = f", and {len(steps) - 1} more gaps" if len(steps) > 1 else ""
    reason = f"lacks the picture {missing}, between {one.name} and {other.name}{more}"
    raise UnusableFileError(folder, reason, RENUMBER)


def sequence_pictures(folder: Path) -> tuple[Path, ...]:
    """Find the pictures of a clip in the order of their numbers.

    Raises:
        UnusableFileError: the folder does not hold the pictures of one clip, or not each number once.
    """
    try:
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        reason = f"cannot be read as a folder of pictures ({error.strerror})"
        raise UnusableFileError(folder, reason, CHANGED) from error
    pictures = numbered_pictures(names)
    if not pictures:
        raise UnusableFileError(folder, "no longer holds the numbered pictures of one clip", CHANGED)
    require_each_number_once(folder, pictures)
    return tuple(folder / picture.name for picture in pictures)


def sequence_size(folder: Path) -> tuple[int, int, int]:
    """Read width and height in pixels off the first and the last picture, and count them all.

    Raises:
        UnusableFileError: as `sequence_pictures`; one of the two cannot be read, or they differ in size.
    """
    pictures = sequence_pictures(folder)
    _, height, width, _ = read_image(pictures[0]).shape
    _, last_height, last_width, _ = read_image(pictures[-1]).shape
    _require_one_size(pictures[-1], (last_width, last_height), (width, height))
    return width, height, len(pictures)


def iter_sequence(folder: Path, frame_times: Sequence[float], *, fps: float) -> Iterator[NDArray[np.uint8]]:
    """Yield the picture nearest to each time, as `video.iter_frames` does for a video.

    Args:
        folder: of the numbered pictures.
        frame_times: ascending, in seconds from the first picture. Equal distances go to the earlier one; a
            picture that is nearest to several times is read once and yielded as often.
        fps: pictures per second.

    Yields:
        HW3 uint8 RGB.

    Raises:
        UnusableFileError: the pictures are not those of one clip, too few for these times, unreadable, or
            differ in size.
    """
    pictures = sequence_pictures(folder)
    seconds = len(pictures) / fps
    if max(frame_times) > seconds + 1e-3:
        reason = f"lasts {seconds:.3f} s and has no frame at {max(frame_times):.3f} s"
        raise UnusableFileError(folder, reason, CHANGED)
    last = len(pictures) - 1
    uses = Counter(min(_nearest(time, fps), last) for time in frame_times)
    size: tuple[int, int] | None = None
    for index, times in uses.items():
        [picture_HW3] = read_image(pictures[index])
        height, width, _ = picture_HW3.shape
        size = size or (width, height)
        _require_one_size(pictures[index], (width, height), size)
        yield from repeat(picture_HW3, times)


def _nearest(time: float, fps: float) -> int:
    """The index of the picture nearest to a time in seconds; of two as near, the earlier."""
    return max(0, math.ceil(time * fps - 0.5 - TIE_SECONDS / 2 * fps))


def _require_one_size(picture: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    if size != expected:
        reason = (
            f"changes its picture size: {picture.name} is {size[0]}x{size[1]}, "
            f"pictures before it {expected[0]}x{expected[1]}"
        )
        raise UnusableFileError(picture.parent, reason, ONE_SIZE)
