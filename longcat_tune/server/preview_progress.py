"""How far a preview is, from its job's log and from the files that appear among its results."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longcat_tune.server.gallery_records import FOLDER, Clip, Failure, read_gallery
from longcat_tune.server.tool import error_in

STRIP = ".preview.png"
"""Ends the names of pictures of a render that is being made; see docs/renders.md."""

COUNTED = re.compile(r"^\d\d:\d\d:\d\d (?P<what>[^\d\n][^\n]*?) (?P<done>\d+)/(?P<total>\d+), ", re.MULTILINE)
"""A line of progress, as the tool logs it where there is no terminal."""

RUNNING = frozenset({"queued", "running", "stopping"})
FAILED = frozenset({"failed", "lost"})
LOG_LINES = 200


class WatchedJob(Protocol):
    """A job as far as it is looked at here."""

    @property
    def state(self) -> str:
        """How far it is, in one word."""

    def log_tail(self, lines: int) -> str:
        """The last lines that it printed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Work of which some is done.

    Attributes:
        what: is being done, in the tool's words.
        done: items of it.
        total: all items.
    """

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preview is.

    Attributes:
        state: of its job; lost where there is no such job and no result either.
        counted: what is being done, if the tool counts it.
        last_line: of the log, without the time.
        strip: a picture of the unfinished render with its version, relative to the results.
        clip: the finished render.
        failures: why it could not be made, if the tool said so in its record.
        error: what the tool said before it gave up.
    """

    state: str
    counted: Counted | None
    last_line: str
    strip: tuple[str, str] | None
    clip: Clip | None
    failures: tuple[Failure, ...]
    error: str | None

    @property
    def is_active(self) -> bool:
        """Whether something may still happen."""
        return self.state in RUNNING

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a render, and nobody asked it to."""
        return self.state in FAILED


def progress_of(job: WatchedJob | None, results: Path, *, told: Callable[[str], str]) -> Progress:
    """Look at a preview.

    Args:
        job: that renders it; None where it is not known any more.
        results: that it writes to, resolved.
        told: what a visitor may read of a text of the tool.
    """
    # First the state: what a job that has ended left is complete.
    state = job.state if job is not None else None
    gallery = read_gallery(results)
    clips = [*gallery.requests.values()]
    failures = tuple(
        Failure(failure.name, told(failure.reason)) for one in gallery.weights for failure in one.failures
    )
    if state is None:
        state = "finished" if clips else "lost"
    log = told(job.log_tail(LOG_LINES)) if job is not None else ""
    return Progress(
        state=state,
        counted=_counted(log),
        last_line=_last_line(log),
        strip=_strip(results) if state in RUNNING else None,
        clip=clips[-1] if clips and state not in RUNNING else None,
        failures=failures,
        error=error_in(log) if state in FAILED and log.strip() else None,
    )


def _counted(log: str) -> Counted | None:
    found = [*COUNTED.finditer(log)]
    return Counted(found[-1]["what"], int(found[-1]["done"]), int(found[-1]["total"])) if found else None


def _last_line(log: str) -> str:
    last = log.strip().rpartition("\n")[2]
    return re.sub(r"^\d\d:\d\d:\d\d ", "", last).strip()


def _strip(results: Path) -> tuple[str, str] | None:
    """The newest picture of a render on its way."""
    found = []
    for path in (results / FOLDER).glob(f"*/*{STRIP}"):
        with suppress(FileNotFoundError):  # the render was finished meanwhile
            found.append((path.stat().st_mtime_ns, path))
    if not found:
        return None
    changed, path = max(found)
    return path.relative_to(results).as_posix(), f"{changed:x}"
