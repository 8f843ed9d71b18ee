"""The command `thumbnails`: one small picture per clip or image of a folder, and an index of what was found.

For programs that show clips and read no videos themselves. Knows neither captions nor buckets.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longcat_tune.data.examine import WORKERS
from longcat_tune.data.images import read_image
from longcat_tune.data.listing import Kind, list_files, printable
from longcat_tune.data.prefetch import mapped_ahead
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.sequences import sequence_pictures
from longcat_tune.data.video import iter_frames, probe
from longcat_tune.errors import ConfigError, DataError
from longcat_tune.files import require_writable, write_atomically, write_json_atomically
from longcat_tune.log import output, progress

logger = logging.getLogger(__name__)

INDEX = "index.json"
NAME_DIGITS = 32
"""Of the hash of a clip's name, by which its thumbnail is called whatever characters the name holds."""
QUALITY = 82
SECONDS_BETWEEN_SAVES = 2.0
"""How old the index may be while thumbnails are made: who reads it shows what is there."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One line of the index.

    Attributes:
        name: path of the clip below the folder, with forward slashes.
        file: the clip.
        kind: video, image or sequence, which is a folder of numbered pictures.
        size: of the clip in bytes.
        version: by which a later change of the clip shows.
        thumbnail: name of the picture; None: not made yet, or the clip cannot be read.
        width: of the clip in pixels as shown; 0 where that is not known.
        height: the same.
        seconds: of a video; 0 otherwise.
        reason: why it cannot be read; None where it can, or was not tried yet.
        remedy: what to do about it.
    """

    name: str
    file: str
    kind: Kind
    size: int
    version: int
    thumbnail: str | None = None
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    reason: str | None = None
    remedy: str | None = None


class _Picture(NamedTuple):
    picture_HW3: NDArray[np.uint8]
    seconds: float


def thumbnails(clips_dir: Path, *, out: Path, size: int, apart: bool) -> None:
    """Make what is missing of a folder's thumbnails; goes on where it was stopped.

    Args:
        clips_dir: scanned with its subfolders; hidden files are left out.
        out: takes the thumbnails and index.json.
        size: length of the longer edge in pixels; smaller clips keep their size.
        apart: numbered pictures are images of their own.

    Raises:
        ConfigError: `out` lies among the clips, where thumbnails would become clips.
        DataError: the folder cannot be read.
        UserError: `out` cannot be written to or its disk is full.
    """
    _require_apart(clips_dir, out)
    require_writable(out)
    before = _remembered(out, size)
    found = [_recalled(one, before, out) for one in _listed(clips_dir, apart=apart)]
    waiting = [number for number, one in enumerate(found) if one.thumbnail is None and one.reason is None]
    index = _Index(out, clips_dir, size, found)
    index.save(complete=not waiting)
    if waiting:
        index.fill(waiting)
    _remove_left_over(out, before, found)
    unreadable = [one for one in found if one.reason is not None]
    for one in unreadable:
        logger.warning("%s %s; %s", one.file, one.reason, one.remedy)
    made = len(waiting) - sum(1 for number in waiting if found[number].reason is not None)
    text = f"{len(found) - len(unreadable)} thumbnails in {out} ({made} new), {len(unreadable)} unreadable"
    output.print(text, markup=False, highlight=False)


class _Index:
    """The state of one run: the lines of the index, saved now and then."""

    def __init__(self, out: Path, folder: Path, size: int, found: list[Thumbnail]) -> None:
        self.out = out
        self.folder = folder
        self.size = size
        self.found = found
        self.saved = 0.0

    def save(self, *, complete: bool) -> None:
        """Write the index as it is now."""
        clips = [asdict(one) for one in self.found]
        index = {"folder": str(self.folder), "size": self.size, "complete": complete, "clips": clips}
        write_json_atomically(self.out / INDEX, index)
        self.saved = time.monotonic()

    def fill(self, waiting: Sequence[int]) -> None:
        """Make the thumbnails of these lines, several at once."""
        made = mapped_ahead(self._made, waiting, workers=WORKERS, ahead=2 * WORKERS)
        with closing(made), progress("Thumbnails", len(waiting)) as bar:
            for number, one in zip(waiting, made, strict=True):
                self.found[number] = one
                bar.advance()
                if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
                    self.save(complete=False)
        self.save(complete=True)

    def _made(self, number: int) -> Thumbnail:
        one = self.found[number]
        try:
            picture, seconds = _middle(Path(one.file), one.kind)
        except UnusableFileError as error:
            return replace(one, reason=error.reason, remedy=error.remedy)
        name = f"{hashlib.sha256(one.name.encode()).hexdigest()[:NAME_DIGITS]}.jpg"
        image = Image.fromarray(picture)
        image.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        write_atomically(self.out / name, lambda part: image.save(part, "JPEG", quality=QUALITY))
        height, width, _ = picture.shape
        return replace(one, thumbnail=name, width=width, height=height, seconds=seconds)


def _require_apart(clips_dir: Path, out: Path) -> None:
    """Thumbnails may lie below the clips only where a scan does not look."""
    inside = out.resolve()
    if not inside.is_relative_to(clips_dir.resolve()):
        return
    if not any(part.startswith(".") for part in inside.relative_to(clips_dir.resolve()).parts):
        msg = f"--out ({out}) must not lie in {clips_dir}, where thumbnails would become clips; name a "
        raise ConfigError(msg + "folder beside it, or a hidden one such as .thumbnails")


def _listed(folder: Path, *, apart: bool) -> Iterator[Thumbnail]:
    """Every clip and image of a folder, by name.

    Raises:
        DataError: a folder cannot be read.
    """
    listing = list_files(folder, "eval" if apart else "video")
    if listing.unreadable:
        place, words = listing.unreadable[0]
        raise DataError(f"{place} cannot be read as a folder ({words}); correct it or its permissions")
    files = list(listing.files)
    if listing.others:
        # Listed again as images, because only files that are taken are checked, for links that lead out.
        loose = set(listing.others)
        files += [one for one in list_files(folder, "image").files if one.name in loose]
    for found in sorted(files, key=lambda one: one.name):
        name, trouble = printable(found.name), found.trouble
        one = Thumbnail(name, str(listing.base / name), found.kind, *found.stamp)
        yield one if trouble is None else replace(one, reason=trouble.reason, remedy=trouble.remedy)


def _remembered(out: Path, size: int) -> dict[str, Mapping[str, Any]]:
    """The lines of an earlier index of this size by name; none where there is no such index."""
    try:
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        return {clip["name"]: clip for clip in index["clips"]} if index["size"] == size else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _recalled(one: Thumbnail, before: Mapping[str, Mapping[str, Any]], out: Path) -> Thumbnail:
    """The line as it was, where the clip and its thumbnail are the same still."""
    old = before.get(one.name, {})
    same = (old.get("file"), old.get("size"), old.get("version")) == (one.file, one.size, one.version)
    if one.reason is not None or not same or old.get("thumbnail") is None:
        return one
    if not (out / str(old["thumbnail"])).is_file():
        return one
    return replace(one, **{key: old[key] for key in ("thumbnail", "width", "height", "seconds")})


def _middle(path: Path, kind: Kind) -> _Picture:
    """The picture in the middle of a clip, which says more of it than a first one that fades in.

    Raises:
        UnusableFileError: the clip cannot be read.
    """
    if kind == "video":
        info = probe(path)
        [picture] = iter_frames(path, [info.times[info.num_frames // 2]])
        return _Picture(picture, info.seconds)
    if kind == "sequence":
        pictures = sequence_pictures(path)
        path = pictures[len(pictures) // 2]
    [picture] = read_image(path)
    return _Picture(picture, 0.0)


def _remove_left_over(out: Path, before: Mapping[str, Mapping[str, Any]], found: Sequence[Thumbnail]) -> None:
    """Delete thumbnails of clips that are gone; nothing but what an index named."""
    used = {one.thumbnail for one in found}
    for old in before.values():
        if old.get("thumbnail") not in used | {None}:
            (out / Path(str(old["thumbnail"])).name).unlink(missing_ok=True)
