"""The jobs of a workspace: a queue, and one running job on each device.

All of it is on the disk, so that a server that is started again, after whatever, goes on with what is there.
Knows nothing of what the jobs do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

from longcat_tune.errors import UserError
from longcat_tune.files import write_json_atomically
from longcat_tune.server.devices import Device, find_devices, pick
from longcat_tune.server.job_runner import CANCEL, CHILD, ENDED, NOT_STARTED, PROCESS, STOP
from longcat_tune.server.jobs_process import ProcessMark
from longcat_tune.server.jobs_record import ACTIVE, ID, STARTED, Job, JobKind, read_record
from longcat_tune.server.replies import Refusal
from longcat_tune.server.tool import SAFE_PATH

logger = logging.getLogger(__name__)

ORDER = "queue.json"
"""Ids of queued jobs in the order that was chosen; those not in it come after, oldest first."""

SECONDS_BETWEEN_LOOKS = 0.5
"""How long a device stays idle at most."""


class JobBoard:
    """Takes jobs, starts them when their device is free, and tells of them.

    Its methods may be called from any thread.

    Args:
        folder: where jobs are kept, each in a folder of its own.
        command: how the tool is run; a job's words follow.
        working_folder: that the jobs run in.
        devices: finds what there is to run on; asked once, when it is first needed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str],
        working_folder: Path,
        devices: Callable[[], tuple[Device, ...]] = find_devices,
    ) -> None:
        self._folder = folder
        self._command = tuple(command)
        self._working_folder = working_folder
        self._find_devices = devices
        self._devices: tuple[Device, ...] = ()
        self._lock = threading.RLock()
        # Neither what was asked nor that a job has ended ever changes.
        self._known: dict[str, Job] = {}
        self._over: set[str] = set()
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def devices(self) -> tuple[Device, ...]:
        """What jobs can run on."""
        with self._lock:
            if not self._devices:
                self._devices = self._find_devices()
            return self._devices

    def submit(self, *, kind: JobKind, run: str, argv: Sequence[str], device: str | None = None) -> Job:
        """Put a job at the end of the queue.

        Args:
            kind: what it does.
            run: id of the run that it belongs to; empty for none.
            argv: words of the command line after the program; no shell reads them.
            device: id of the device to run on; None: whichever is free first.

        Raises:
            Refusal: there is no such device, or the run is being trained already.
            UserError: the folder cannot be written to or the disk is full.
        """
        assert not any("\0" in word for word in argv), "a word of a command line holds no NUL"
        wanted = None if device is None else pick(self.devices, device)
        with self._lock:
            if kind == "train" and any(one.kind == "train" for one in self.active(run)):
                raise Refusal(409, "runs.busy", name=run)
            now = time.time()
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{token_hex(4)}"
            job = Job(name, kind, run, tuple(argv), wanted, now, self._folder / name)
            job.write()
            return job

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            Refusal: there is none of that id.
        """
        job = Job.read(self._folder / job_id) if ID.fullmatch(job_id) else None
        if job is None:
            raise Refusal(404, "runs.no_such_job", name=job_id[:80])
        return job

    def list(self) -> tuple[Job, ...]:
        """All jobs, oldest first."""
        return self._read(self._names())

    def of_run(self, run: str) -> tuple[Job, ...]:
        """All jobs of a run, oldest first."""
        return tuple(job for job in self.list() if job.run == run)

    def active(self, run: str | None = None) -> tuple[Job, ...]:
        """Jobs that wait or run, oldest first.

        Args:
            run: only those of this one.
        """
        found = []
        for job in self._read(name for name in self._names() if name not in self._over):
            if job.state not in ACTIVE:
                self._over.add(job.id)
            elif run is None or job.run == run:
                found.append(job)
        return tuple(found)

    def queue(self) -> tuple[Job, ...]:
        """Jobs that wait, in the order in which they will start."""
        chosen = read_record(self._folder / ORDER).get("order", [])
        place = {name: number for number, name in enumerate(chosen)}
        waiting = [job for job in self.active() if job.state == "queued"]
        return tuple(sorted(waiting, key=lambda job: place.get(job.id, len(place))))

    def move(self, job_id: str, places: int) -> None:
        """Let a waiting job start earlier or later.

        Args:
            job_id: which.
            places: how many places towards the end of the queue; negative towards its head.

        Raises:
            Refusal: it does not wait, or there is no such job.
        """
        with self._lock:
            job = self.get(job_id)
            names = [one.id for one in self.queue()]
            if job.id not in names:
                raise Refusal(409, "runs.not_queued", name=job.id)
            old = names.index(job.id)
            names.insert(max(0, old + places), names.pop(old))
            write_json_atomically(self._folder / ORDER, {"order": names})

    def stop(self, job_id: str) -> Job:
        """Ask a job to finish its step, save and end; one that waits leaves the queue.

        Raises:
            Refusal: there is no such job, or it has ended.
        """
        return self._end(job_id, STOP, signal.SIGINT)

    def cancel(self, job_id: str) -> Job:
        """End a job at once; one that waits leaves the queue.

        Raises:
            Refusal: there is no such job, or it has ended.
        """
        return self._end(job_id, CANCEL, signal.SIGTERM)

    def start_due(self) -> tuple[Job, ...]:
        """Start what can start now.

        Returns:
            What was started.
        """
        with self._lock:
            # Asks the system for the end of each, so that none stays a zombie.
            self._children = [child for child in self._children if child.poll() is None]
            running = [job for job in self.active() if job.state != "queued"]
            taken = {job.device for job in running}
            started = []
            for job in self.queue():
                free = [one for one in self.devices if one.id not in taken]
                device = next((one for one in free if job.wanted_device in {None, one.id}), None)
                if device is not None:
                    self._start(job, device)
                    taken.add(device.id)
                    started.append(job)
                elif job.wanted_device not in {None, *(one.id for one in self.devices)}:
                    self._give_up(job, f"device ({job.wanted_device}) is no longer there; start it again")
            return tuple(started)

    @asynccontextmanager
    async def scheduling(self) -> AsyncIterator[None]:
        """Start jobs as devices become free while the block runs; they go on after it."""
        task = asyncio.create_task(self._schedule())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _schedule(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.start_due)
            except (OSError, UserError):
                # A folder that cannot be read now may be there again in a moment, as on a network.
                logger.exception("the jobs in %s could not be looked at", self._folder)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def _names(self) -> Sequence[str]:
        if not self._folder.is_dir():
            return ()
        return sorted(path.name for path in self._folder.iterdir() if ID.fullmatch(path.name))

    def _read(self, names: Iterable[str]) -> tuple[Job, ...]:
        jobs = []
        for name in names:
            job = self._known.get(name) or Job.read(self._folder / name)
            if job is not None:
                self._known[name] = job
                jobs.append(job)
        return tuple(sorted(jobs, key=lambda job: (job.created, job.id)))

    def _end(self, job_id: str, name: str, number: signal.Signals) -> Job:
        with self._lock:
            job = self.get(job_id)
            if job.state not in ACTIVE:
                raise Refusal(409, "runs.job_over", name=job.id)
            asked_before = job.has(name)
            # First the file: a wrapper that is only starting looks for it once it can take signals.
            write_json_atomically(job.folder / (name if job.started else CANCEL), {"time": time.time()})
            wrapper, child = job.mark(PROCESS), job.mark(CHILD)
            if wrapper is not None and wrapper.send(number):
                return job
            if child is not None and number == signal.SIGTERM:
                child.send(signal.SIGKILL, group=True)
            elif child is not None and not asked_before:
                child.send(number)
            return job

    def _start(self, job: Job, device: Device) -> None:
        runner = (sys.executable, "-m", "longcat_tune.server.job_runner", str(job.folder))
        environment = os.environ | device.environment
        # Lines reach the log as they are printed.
        environment |= {"PYTHONUNBUFFERED": "1", **SAFE_PATH}
        with job.log.open("ab") as log:
            try:
                child = subprocess.Popen(
                    (*runner, *self._command, *job.argv),
                    cwd=self._working_folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Not of the terminal whose Ctrl-C ends the server.
                    start_new_session=True,
                )
            except OSError as error:
                self._give_up(job, f"the job could not be started: {error.strerror}")
                return
        self._children.append(child)
        mark = ProcessMark.of(child.pid)
        write_json_atomically(
            job.folder / STARTED, {"pid": mark.pid, "create_time": mark.create_time, "device": device.id}
        )
        logger.info("started job %s on %s: %s", job.id, device.name, " ".join(job.argv))

    @staticmethod
    def _give_up(job: Job, reason: str) -> None:
        with job.log.open("a", encoding="utf-8") as log:
            log.write(f"error: {reason}\n")
        write_json_atomically(job.folder / ENDED, {"exit_code": NOT_STARTED, "time": time.time()})
