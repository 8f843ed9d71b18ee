"""One job as its folder tells it: what was asked, how far it is, what it printed.

Every state is read from the files, never remembered: the process that knew may have been killed.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from longcat_tune.files import write_json_atomically
from longcat_tune.server.job_runner import CANCEL, CHILD, ENDED, INTERRUPTED, LOG, PROCESS, STOP
from longcat_tune.server.jobs_process import ProcessMark

JobKind = Literal["train", "validate"]

JobState = Literal["queued", "running", "stopping", "finished", "stopped", "failed", "cancelled", "lost"]
"""finished: exit code 0. stopped: broken off by a signal that let it save. cancelled: ended without that, or
taken out of the queue. lost: its process has gone without a word, as when the machine was switched off."""

ACTIVE: frozenset[JobState] = frozenset({"queued", "running", "stopping"})
"""All others are final."""

JOB, STARTED = "job.json", "started.json"
ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")

STOPPED_CODES = {INTERRUPTED, -signal.SIGINT}
TAIL_BYTES = 256 * 1024
"""Of the log that its last lines are looked for in."""


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked, and where the answers are.

    Attributes:
        id: its folder's name; later ones sort after earlier ones.
        kind: what it does.
        run: id of the run that it belongs to; empty for none.
        argv: words of the command line after the program.
        wanted_device: id of the device that it must run on; None: any.
        created: seconds since 1970.
        folder: all that is known of it.
    """

    id: str
    kind: JobKind
    run: str
    argv: tuple[str, ...]
    wanted_device: str | None
    created: float
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Job | None:
        """Read a job; None when there is none, or half of one."""
        value = read_record(folder / JOB)
        argv, created, device = value.get("argv", []), value.get("created", 0), value.get("device")
        # Whoever edits such a file by hand must not bring the queue to a stop.
        is_whole = isinstance(argv, list) and isinstance(created, int | float)
        if value.get("kind") not in get_args(JobKind) or not is_whole:
            return None
        return cls(
            id=folder.name,
            kind=value["kind"],
            run=str(value.get("run", "")),
            argv=tuple(map(str, argv)),
            wanted_device=None if device is None else str(device),
            created=float(created),
            folder=folder,
        )

    def write(self) -> None:
        """Keep it in its folder, which is made.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        write_json_atomically(
            self.folder / JOB,
            {
                "id": self.id,
                "kind": self.kind,
                "run": self.run,
                "argv": list(self.argv),
                "device": self.wanted_device,
                "created": self.created,
            },
        )

    @property
    def state(self) -> JobState:
        """How far it is."""
        ended = read_record(self.folder / ENDED)
        if ended:
            return self._outcome(ended.get("exit_code"))
        if not self.started:
            return "cancelled" if self.has(CANCEL) else "queued"
        if not self.alive:
            # It may have ended since the file was looked for.
            ended = read_record(self.folder / ENDED)
            return self._outcome(ended.get("exit_code")) if ended else "lost"
        return "stopping" if self.has(STOP) or self.has(CANCEL) else "running"

    @property
    def active(self) -> bool:
        """Whether something may still happen to it."""
        return self.state in ACTIVE

    @property
    def started(self) -> bool:
        """Whether it has left the queue."""
        return self.has(STARTED) or self.has(PROCESS)

    @property
    def alive(self) -> bool:
        """Whether any of its processes runs: the command may outlive a wrapper that was killed."""
        return any(mark is not None and mark.alive for mark in map(self.mark, (STARTED, PROCESS, CHILD)))

    @property
    def device(self) -> str | None:
        """Id of the device that it runs or ran on; None before it starts."""
        device = read_record(self.folder / STARTED).get("device", self.wanted_device)
        return None if device is None else str(device)

    @property
    def exit_code(self) -> int | None:
        """Of the command; negative: the signal that killed it; None: unknown."""
        code = read_record(self.folder / ENDED).get("exit_code")
        return code if isinstance(code, int) else None

    @property
    def log(self) -> Path:
        """What it prints; missing before it starts."""
        return self.folder / LOG

    def log_tail(self, lines: int) -> str:
        """The last lines that it printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name in its folder."""
        return (self.folder / name).exists()

    def mark(self, name: str) -> ProcessMark | None:
        """The process that one of its files names."""
        return ProcessMark.read(self.folder / name)

    def _outcome(self, code: object) -> JobState:
        if code == 0:
            return "finished"
        if self.has(CANCEL):
            return "cancelled"
        return "stopped" if code in STOPPED_CODES else "failed"


def read_record(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none, or only what a power cut left of it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
