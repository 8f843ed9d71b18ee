"""What was learned about source files, remembered between runs: the hash and the probe of each.

A file counts as the same while its path, size and modification time are. Nothing here is ever needed: what
is lost, torn or written by another version is learned again. Knows nothing of how files are probed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from longcat_tune.data.refusals import CHANGED, UnusableFileError
from longcat_tune.data.sequences import sequence_pictures
from longcat_tune.data.source_rows import (
    Facts,
    Probe,
    facts_of,
    line_of,
    probe_of,
    probe_text,
    read_rows,
    row_of,
)
from longcat_tune.errors import UserError
from longcat_tune.files import explained_disk_errors, write_atomically
from longcat_tune.types import Stamp

logger = logging.getLogger(__name__)

FILE_NAME = "sources.jsonl"
ANOTHER = "is no longer the file that was looked at"
COMPACTED_FROM = 1000
"""Lines below which the file is not worth rewriting, however many of them are stale."""


class SourceIndex:
    """The memory that one cache folder keeps, in `sources.jsonl`.

    Each line is an array: absolute path, size, version, content hash or null, probe or null. Lines are only
    ever added, so several processes may write and any of them may be killed; the last line about a file
    wins. A line is parsed when its file is asked for, which keeps 100,000 of them at 0.1 s and 35 MB.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.rows, self.lines = _read(self.path)
        self.parsed: dict[str, Facts] = {}
        self.unsaved: set[str] = set()
        self.kept = time.monotonic()
        self.told = False

    def probed(self, path: Path, stamp: Stamp, reader: str) -> Probe | None:
        """Recall what this reader found in a file, if its stamp is still this one."""
        text = self._facts(_key(path), stamp).probe
        probe = None if text is None else probe_of(text)
        return probe if probe is not None and probe.reader == reader else None

    def remember(self, path: Path, stamp: Stamp, probe: Probe) -> None:
        """Note what was found in a file.

        Args:
            path: the file.
            stamp: from before it was opened, so that a later change is never taken for what was seen.
            probe: the finding.
        """
        key = _key(path)
        self._note(key, self._facts(key, stamp)._replace(probe=probe_text(probe)))

    def content(self, path: Path, stamp: Stamp) -> str:
        """Return the content hash of a file, or of a folder of numbered pictures with their names.

        Args:
            path: the file; not looked at when its hash is known.
            stamp: of the file that is meant.

        Raises:
            UnusableFileError: it cannot be read, or is another file by now.
        """
        key = _key(path)
        facts = self._facts(key, stamp)
        if facts.content is not None:
            return facts.content
        try:
            now, pictures = _look_at(path)
            if now != stamp:
                raise UnusableFileError(path, ANOTHER, CHANGED)
            content = _hash_of_pictures(pictures) if pictures else _hash_of_file(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._note(key, facts._replace(content=content))
        return content

    def save(self) -> None:
        """Write down what was learned since the last time.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        if self.unsaved:
            # A kill may have left a torn line without an end; an empty line more does no harm.
            lines = [f"\n{line_of(key, self.rows[key])}" for key in sorted(self.unsaved)]
            _append(self.path, "".join(lines) + "\n")
            self.lines += len(lines)
            self.unsaved.clear()
        if self.lines >= max(COMPACTED_FROM, 2 * len(self.rows)):
            self._compact()

    def keep(self, *, after: float = 0.0) -> None:
        """Save where that is possible; where it is not, say so once, for it costs only time in the next run.

        For whoever merely looks, as `check` does: its cache folder may be somebody else's.

        Args:
            after: seconds that must have passed since the last time.
        """
        now = time.monotonic()
        if now - self.kept < after:
            return
        self.kept = now
        try:
            self.save()
        except UserError as error:
            if not self.told:
                logger.warning("%s; until then every file is examined again in each run", error)
                self.told = True

    def _facts(self, key: str, stamp: Stamp) -> Facts:
        facts = self.parsed.get(key)
        if facts is None:
            row = self.rows.get(key)
            facts = None if row is None else facts_of(row)
            if facts is not None:
                self.parsed[key] = facts  # a warm start asks for each file three times
        return facts if facts is not None and facts.stamp == stamp else Facts(stamp, None, None)

    def _note(self, key: str, facts: Facts) -> None:
        self.rows[key], self.parsed[key] = row_of(facts), facts
        self.unsaved.add(key)

    def _compact(self) -> None:
        """Rewrite the file with one line per path, other processes' lines among them.

        What they add between our reading and our replacing is lost, which only costs them work.
        """
        rows, _ = _read(self.path)
        self.rows.update(rows)
        self.parsed.clear()
        sound = [line_of(key, row) for key, row in self.rows.items() if facts_of(row) is not None]
        write_atomically(self.path, lambda part: part.write_text("\n".join([*sound, ""]), encoding="ascii"))
        self.lines = len(self.rows)


def stamp_of(path: Path) -> Stamp:
    """Look at a file, or a folder of numbered pictures, without opening any.

    Raises:
        UnusableFileError: it is not there, or the folder no longer holds the pictures of one clip.
    """
    try:
        return _look_at(path)[0]
    except OSError as error:
        raise _unreadable(path, error) from error


def require_unchanged(path: Path, stamp: Stamp) -> None:
    """Make sure that what was read since is what was stamped.

    Args:
        path: the file or folder.
        stamp: from before it was read.

    Raises:
        UnusableFileError: it is another file by now, or gone.
    """
    if stamp_of(path) != stamp:
        raise UnusableFileError(path, ANOTHER, CHANGED)


def stamp_of_pictures(pictures: Iterable[tuple[str, int, int]]) -> Stamp:
    """Stamp a folder of pictures by the name, size in bytes and modification time in ns of each."""
    size, digest = 0, hashlib.blake2b(digest_size=8)
    for name, picture_size, mtime_ns in sorted(pictures):
        size += picture_size
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(name), picture_size, mtime_ns))
    return Stamp(size, int.from_bytes(digest.digest()))


def _key(path: Path) -> str:
    """How a file is called in the index; links are left as they are, which saves a look at every folder."""
    return str(path.absolute())


def _look_at(path: Path) -> tuple[Stamp, Sequence[Path]]:
    """The stamp, and the pictures if it is a folder of them."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return Stamp(status.st_size, status.st_mtime_ns), ()
    pictures = sequence_pictures(path)
    looks = [(picture.name, picture.stat()) for picture in pictures]
    return stamp_of_pictures((name, look.st_size, look.st_mtime_ns) for name, look in looks), pictures


def _hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _hash_of_pictures(pictures: Iterable[Path]) -> str:
    digest = _blake2b()
    for picture in pictures:
        digest.update(b"%s\0%s\0" % (os.fsencode(picture.name), _hash_of_file(picture).encode()))
    return digest.hexdigest()


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _unreadable(path: Path, error: OSError) -> UnusableFileError:
    return UnusableFileError(
        path, f"cannot be read ({error.strerror})", "restore it or remove it from the dataset"
    )


def _read(path: Path) -> tuple[dict[str, str], int]:
    """What `read_rows` gives, and nothing where there is no file yet."""
    try:
        return read_rows(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}, 0
    except OSError as error:
        logger.warning("%s cannot be read (%s); every file is examined again", path, error.strerror)
        return {}, 0


def _append(path: Path, text: str) -> None:
    data = text.encode("ascii")
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # All in one write, which the system puts at the end in one piece whoever else writes there.
        with path.open("ab") as file:
            file.write(data)
