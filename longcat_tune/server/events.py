"""Reading events.jsonl while a run writes it: whole lines, from any offset on, whoever replaces the file.

Knows nothing of requests, nor of what the events mean.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

CHUNK = 128 * 1024
"""Bytes that are read at a time, some 500 steps; a longer line is read whole."""

HEAD = 512
"""Bytes at the beginning that tell one file from another in its place: the first event has its time."""


@dataclass(frozen=True, slots=True)
class Events:
    """What was read at a time.

    Attributes:
        events: one object a line, in order; lines that are none are left out.
        offset: in bytes, behind the last of them.
        replaced: the file is another one than before: what was read of it counts no more, and these begin it.
        more: there may be more to read at once.
    """

    events: tuple[dict[str, Any], ...] = ()
    offset: int = 0
    replaced: bool = False
    more: bool = False


class EventsReader:
    """A place in a file that grows.

    Args:
        path: of the file, which may be missing yet.
        offset: in bytes, where to go on; one that is not behind a whole line begins the file anew.
        identity: of the file that the offset belongs to; empty: of whichever is there.

    Attributes:
        path: the same.
        offset: in bytes, behind what was read.
        identity: of the file that was read; empty: there was none yet.
    """

    def __init__(self, path: Path, *, offset: int = 0, identity: str = "") -> None:
        self.path = path
        self.offset = offset
        self.identity = identity

    def read(self) -> Events:
        """Read what is new, up to a chunk; nothing where there is no file."""
        try:
            file = self.path.open("rb")
        except OSError:
            return Events(offset=self.offset)
        with file:
            replaced = self._find_place(file)
            data = file.read(CHUNK)
            more = len(data) == CHUNK
            if more and b"\n" not in data:
                data += file.readline()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        events = tuple(event for line in whole.splitlines() if (event := _parsed(line)))
        return Events(events, self.offset, replaced, more and bool(whole))

    def _find_place(self, file: IO[bytes]) -> bool:
        """Go to the offset; to the beginning, and say so, when the file is not the one it belongs to."""
        identity = _identity(file)
        known = self.identity in {"", identity}
        self.identity = identity
        file.seek(max(0, self.offset - 1))
        replaced = not known or (self.offset > 0 and file.read(1) != b"\n")
        if replaced:
            self.offset = 0
        file.seek(self.offset)
        return replaced


def _identity(file: IO[bytes]) -> str:
    """Of the first line; empty while it is not whole."""
    line, newline, _ = file.read(HEAD).partition(b"\n")
    return sha256(line).hexdigest()[:16] if newline or len(line) == HEAD else ""


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        # NaN and Infinity are no JSON: a browser would refuse all that comes with them.
        event = json.loads(line, parse_constant=_nothing, parse_float=_finite)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _nothing(_name: str) -> None:
    return None
