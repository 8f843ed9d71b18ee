"""Hashes of weight files, remembered beside the caches: a warm run reads no weights to name its files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from longcat_tune.errors import UserError
from longcat_tune.files import write_json_atomically
from longcat_tune.model.identity import file_hash

logger = logging.getLogger(__name__)

FILE_NAME = "weights.json"
STAMP_AND_HASH = 3


class WeightHashes:
    """A memory only: what is lost or unreadable is hashed again.

    A file counts as the same while its path, size and modification time are.

    Args:
        folder: of the run's caches.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.known = _read(self.path)
        self.changed = False

    def of(self, path: Path) -> str:
        """Give the `file_hash` of a file."""
        status, key = path.stat(), str(path.absolute())
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self.known.get(key)
        if entry is None or entry[:2] != stamp:
            entry = self.known[key] = [*stamp, file_hash(path)]
            self.changed = True
        return str(entry[2])

    def keep(self) -> None:
        """Write down what was hashed, where that is possible."""
        if not self.changed:
            return
        self.changed = False
        try:
            write_json_atomically(self.path, self.known)
        except UserError as error:
            logger.debug("%s; the next run hashes the weights again", error)


def _read(path: Path) -> dict[str, list[int | str]]:
    """Size, modification time in nanoseconds and hash by absolute path."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): [*row] for key, row in known.items() if len(row) == STAMP_AND_HASH}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
