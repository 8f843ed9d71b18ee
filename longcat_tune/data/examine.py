"""What each file of a listing holds: recalled where it is the same file still, else opened, several at once.

Knows how each kind is read; nothing of captions or of what the numbers are for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from longcat_tune.data.images import read_image
from longcat_tune.data.listing import FoundFile, Kind
from longcat_tune.data.prefetch import mapped_ahead
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.sequences import sequence_size
from longcat_tune.data.source_rows import Probe
from longcat_tune.data.sources import SourceIndex
from longcat_tune.data.video import VideoBackend, probe
from longcat_tune.log import progress

Look = Probe | UnusableFileError
"""What a file holds, or why it cannot be used."""

RULES = 2
"""Raised by one whenever a file is measured or refused in another way, so that remembered probes are left."""
SECONDS_BETWEEN_SAVES = 10.0
"""How much work of a first look a kill may cost."""
WORKERS = min(8, os.cpu_count() or 1)


def look_at_files(
    files: Sequence[FoundFile],
    paths: Sequence[Path],
    *,
    title: str,
    index: SourceIndex | None,
    backend: VideoBackend,
) -> list[Look]:
    """Say of each file what it holds.

    Args:
        files: as they were listed.
        paths: of each.
        title: of the bar that shows while files are opened.
        index: what is known from earlier; learns what is found, and is kept every few seconds.
        backend: who will read the videos.

    Raises:
        ConfigError: decord is asked for and not installed.
    """
    looks = [
        file.trouble or _recalled(file, path, index, backend) for file, path in zip(files, paths, strict=True)
    ]
    unknown = [number for number, look in enumerate(looks) if look is None]

    def opened(number: int) -> Look:
        try:
            return _examine(paths[number], files[number].kind, backend)
        except UnusableFileError as error:
            return error

    for number, look in zip(unknown, _each(opened, unknown, title), strict=True):
        looks[number] = look
        if index is not None and isinstance(look, Probe):
            index.remember(paths[number], files[number].stamp, look)
            index.keep(after=SECONDS_BETWEEN_SAVES)
    if index is not None:
        index.keep()
    return [look for look in looks if look is not None]


def _recalled(file: FoundFile, path: Path, index: SourceIndex | None, backend: VideoBackend) -> Look | None:
    if index is None:
        return None
    return index.probed(path, file.stamp, _reader(file.kind, backend))


def _each(look: Callable[[int], Look], numbers: Sequence[int], title: str) -> Iterator[Look]:
    """The looks in order, with a bar if there are any."""
    if not numbers:
        return
    looks = mapped_ahead(look, numbers, workers=WORKERS, ahead=4 * WORKERS)
    with closing(looks), progress(title, len(numbers)) as bar:
        for one in looks:
            bar.advance()
            yield one


def _reader(kind: Kind, backend: VideoBackend) -> str:
    """Who examines a file of this kind, and by which rules."""
    video_reader = "decord" if backend == "decord" else "pyav"
    return f"{video_reader if kind == 'video' else 'pillow'} {RULES}"


def _examine(path: Path, kind: Kind, backend: VideoBackend) -> Probe:
    reader = _reader(kind, backend)
    match kind:
        case "image":
            # Decoded wholly, for only that tells a truncated image from a whole one.
            _, height, width, _ = read_image(path).shape
            return Probe(reader, width, height, 1, 0.0)
        case "sequence":
            width, height, frames = sequence_size(path)
            return Probe(reader, width, height, frames, 0.0)
        case "video":
            info = probe(path, backend=backend)
            return Probe(reader, info.width, info.height, info.num_frames, info.seconds)
