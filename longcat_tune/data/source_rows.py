"""The lines of a source index: what is known of a file, as text that a torn or foreign line never passes for.

Knows neither when facts hold nor how they are found.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from longcat_tune.types import Stamp

DECODER = json.JSONDecoder()
NO_PATH = ""
ROW = re.compile(r'([0-9]+),(-?[0-9]+),(?:null|"([0-9a-f]+)"),(?:null|(\[.+\]))\]')
"""What follows the path in a line: size, version, content hash, probe."""


class Probe(NamedTuple):
    """What an examined file was found to hold.

    Attributes:
        reader: who examined it, by which rules; another reader must look for itself.
        width: in pixels as shown.
        height: in pixels as shown.
        frames: pictures in it.
        seconds: duration by presentation time; 0 where the file itself has none.
    """

    reader: str
    width: int
    height: int
    frames: int
    seconds: float


class Facts(NamedTuple):
    """What is known of one file at one stamp.

    Attributes:
        stamp: of the file when it was looked at.
        content: its hash.
        probe: as `probe_text` writes it; most files are asked for only one of the two.
    """

    stamp: Stamp
    content: str | None
    probe: str | None


def row_of(facts: Facts) -> str:
    """Write what follows the path in a line."""
    content = "null" if facts.content is None else f'"{facts.content}"'
    return f"{facts.stamp.size},{facts.stamp.version},{content},{facts.probe or 'null'}]"


def line_of(key: str, row: str) -> str:
    """Write a whole line, an array in JSON, without its end."""
    return f"[{json.dumps(key)},{row}"


def facts_of(row: str) -> Facts | None:
    """Read what follows the path in a line; None when it was torn or written by other rules.

    Half of the time of a warm scan would go into JSON here.
    """
    match = ROW.fullmatch(row)
    if match is None:
        return None
    size, version, content, probe = match.groups()
    return Facts(Stamp(int(size), int(version)), content, probe)


def probe_text(probe: Probe) -> str:
    """Write a probe as Facts hold it."""
    return json.dumps(probe, separators=(",", ":"))


@lru_cache(maxsize=4096)
def probe_of(text: str) -> Probe | None:
    """Read a probe; None when it was written by other rules. The clips of one camera share a few."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    match values:
        case [str(reader), int(width), int(height), int(frames), float(seconds)]:
            return Probe(reader, width, height, frames, seconds)
        case _:
            return None


def read_rows(path: Path) -> tuple[dict[str, str], int]:
    """Read an index, without parsing more of a line than its path.

    Returns:
        What follows each path in the last line about it, and the number of lines.

    Raises:
        OSError: the file is not there or cannot be read.
    """
    rows: dict[str, str] = {}
    count = 0
    with path.open(encoding="ascii", errors="replace") as file:
        for key, row in map(_split, file):
            rows[key] = _merged(rows[key], row) if key in rows else row
            count += 1
    rows.pop(NO_PATH, None)
    return rows, count


def _split(line: str) -> tuple[str, str]:
    """The path at the start of a line and what follows; NO_PATH when it is empty, torn or not ours."""
    try:
        key, end = DECODER.raw_decode(line, 1)
    except ValueError:
        return NO_PATH, ""
    return (key, line[end + 1 :].rstrip("\n")) if isinstance(key, str) else (NO_PATH, "")


def _merged(earlier: str, later: str) -> str:
    """The later of two rows about one path, with what it lacks; two processes may know different halves."""
    old, new = facts_of(earlier), facts_of(later)
    if old is None or new is None or old.stamp != new.stamp:
        return earlier if new is None else later
    return row_of(Facts(new.stamp, new.content or old.content, new.probe or old.probe))
