"""The runs of a workspace: which there are, how each is doing, and the words that start one.

A run is a folder with a config or a run.json; what it has come to is read from its jobs and its events, never
remembered for longer than the files say it. Knows nothing of requests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longcat_tune.server.events import EventsReader
from longcat_tune.server.history import History, Summary
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.jobs_record import ACTIVE, Job, JobState, read_record
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import NAME, Workspace

RunState = Literal["new"] | JobState
"""new: was never started."""

FILES = ("run.json", "config.json", "results/events.jsonl")
"""Of a run: what its user calls it, what is trained, and what has happened."""

ENDINGS: dict[object, RunState] = {"finished": "finished", "interrupted": "stopped", "failed": "failed"}
"""How an event of the end calls it, and the state that it leaves."""

KEPT = 64
"""Runs whose curves stay in memory as far as they were read; a megabyte each at most."""
SEARCHED_LINES = 200
"""Of the log in which a failed command says why."""
PROBLEM_LINES = 6
"""Of a traceback: its end says most."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training as its folder tells it.

    Attributes:
        id: its folder's name.
        name: what its user calls it.
        created: seconds since 1970.
        config: what is trained, and how.
        events: what has happened; missing before it starts.
    """

    id: str
    name: str
    created: float
    config: Path
    events: Path


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run is doing at a moment.

    Attributes:
        run: which.
        state: how far it is.
        job: the latest that trains it; None: there was none.
        place: in the queue, from 1; None: it does not wait.
        summary: what it has come to.
    """

    run: Run
    state: RunState
    job: Job | None
    place: int | None
    summary: Summary

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    @property
    def can_start(self) -> bool:
        """Whether it can be put into the queue."""
        return not self.active and self.run.config.is_file()

    @property
    def problems(self) -> tuple[str, ...]:
        """What ended it, each with its remedy where the command gave one."""
        if self.active and self.summary.ended is not None:
            # It was started again, and has not got so far that its events tell of it.
            return ()
        if self.summary.problems or self.job is None or self.state != "failed":
            return self.summary.problems
        return tuple(filter(None, [problem_in(self.job.log_tail(SEARCHED_LINES))]))


class RunBook:
    """All runs of a workspace.

    Args:
        workspace: where they are.
        jobs: that train them.
    """

    def __init__(self, workspace: Workspace, jobs: JobBoard) -> None:
        self._workspace = workspace
        self._jobs = jobs
        self._lock = threading.Lock()
        self._read: OrderedDict[Path, _ReadEvents] = OrderedDict()
        self._summaries: dict[Path, tuple[tuple[int, int, int], Summary]] = {}

    def get(self, run_id: str) -> Run:
        """One run.

        Raises:
            Refusal: there is none of that id.
        """
        run = self._find(run_id) if NAME.fullmatch(run_id) else None
        if run is None:
            raise Refusal(404, "runs.no_such_run", name=run_id[:80])
        return run

    def status(self, run: Run) -> RunStatus:
        """How a run is doing now."""
        return self._status(run, [job for job in self._jobs.of_run(run.id) if job.kind == "train"])

    def statuses(self) -> tuple[RunStatus, ...]:
        """How all runs are doing now, latest first."""
        jobs: dict[str, list[Job]] = {}
        for job in self._jobs.list():
            if job.kind == "train":
                jobs.setdefault(job.run, []).append(job)
        return tuple(self._status(run, jobs.get(run.id, [])) for run in self.list())

    def history(self, run: Run) -> tuple[dict[str, Any], int, str]:
        """What a run has come to as JSON values, and where its events go on.

        Returns:
            The history, and offset and identity for an `EventsReader`.
        """
        read = self._events_of(run)
        with read.lock:
            read.update()
            return read.history.as_json(), read.reader.offset, read.reader.identity

    def start(self, run: Run, device: str | None = None) -> Job:
        """Put a run into the queue; one that was stopped goes on where it was.

        Args:
            run: which.
            device: id of the device to run on; None: whichever is free first.

        Raises:
            Refusal: it waits or runs already, it has no config, or there is no such device.
            UserError: the folder cannot be written to or the disk is full.
        """
        if not run.config.is_file():
            raise Refusal(409, "runs.no_config", name=run.id)
        words = ("train", "--config", str(run.config))
        return self._jobs.submit(kind="train", run=run.id, argv=words, device=device)

    def active_job(self, run: Run) -> Job:
        """The job that trains a run now, or will.

        Raises:
            Refusal: there is none.
        """
        for job in self._jobs.active(run.id):
            if job.kind == "train":
                return job
        raise Refusal(409, "runs.not_active", name=run.id)

    def list(self) -> tuple[Run, ...]:
        """All runs, latest first."""
        folder = self._workspace.runs
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        runs = (self._find(name) for name in names if NAME.fullmatch(name))
        return tuple(sorted((run for run in runs if run), key=lambda run: (-run.created, run.id)))

    def _find(self, name: str) -> Run | None:
        try:
            about, config, events = (
                self._workspace.inside(f"./runs/{name}/{file}", must_exist=False) for file in FILES
            )
        except Refusal:
            # A symlink leads out of the workspace.
            return None
        record = read_record(about)
        if not record and not config.is_file():
            return None
        created = record.get("created")
        # One that was made by hand has no record.
        time = float(created) if isinstance(created, int | float) else _changed(config)
        return Run(name, str(record.get("name") or name), time, config, events)

    def _status(self, run: Run, jobs: Sequence[Job]) -> RunStatus:
        summary = self._summary(run)
        # What was taken out of the queue before it began has changed nothing.
        job = next((job for job in reversed(jobs) if job.started or job.state != "cancelled"), None)
        if job is not None:
            state: RunState = job.state
        elif not summary.started:
            state = "new"
        else:
            state = ENDINGS.get((summary.ended or {}).get("how"), "lost")
        waiting = [one.id for one in self._jobs.queue()] if state == "queued" else []
        place = waiting.index(job.id) + 1 if job is not None and job.id in waiting else None
        return RunStatus(run, state, job, place, summary)

    def _summary(self, run: Run) -> Summary:
        try:
            found = run.events.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            stamp = (0, 0, 0)
        known = self._summaries.get(run.events)
        if known is None or known[0] != stamp:
            read = self._events_of(run)
            with read.lock:
                read.update()
                known = (stamp, read.history.summary())
            self._summaries[run.events] = known
        return known[1]

    def _events_of(self, run: Run) -> _ReadEvents:
        with self._lock:
            read = self._read.setdefault(run.events, _ReadEvents(run.events))
            self._read.move_to_end(run.events)
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
            return read


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class _ReadEvents:
    """The events of a run, folded as far as they were read."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()
        self.reader = EventsReader(path)
        self.history = History()

    def update(self) -> None:
        """Read on to the end of the file; another file in its place begins anew."""
        if not self.reader.path.exists():
            self.reader, self.history = EventsReader(self.reader.path), History()
            return
        more = True
        while more:
            read = self.reader.read()
            if read.replaced:
                self.history = History()
            self.history.add_all(read.events)
            more = read.more


def problem_in(log: str) -> str:
    """Why a command failed, by what it printed last: its message, else the end of a traceback."""
    lines = [line for line in log.splitlines() if line.strip()]
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].startswith("error: "):
            return "\n".join(lines[place:]).removeprefix("error: ")
    return "\n".join(lines[-PROBLEM_LINES:])
