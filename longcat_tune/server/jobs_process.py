"""Which process is meant: a number alone may by now belong to another one.

Knows processes and the small files that name them; nothing of jobs.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from longcat_tune.files import write_json_atomically

SAME_TIME = 1.0
"""Seconds within which two times of creation are one: clocks are set while processes run."""


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process of this machine, for as long as the machine is up.

    Attributes:
        pid: its number, which is given again once it has ended.
        create_time: seconds since 1970 at which it began.
    """

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> ProcessMark:
        """Take down a process that is known to be there.

        Raises:
            psutil.NoSuchProcess: it is not.
        """
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def read(cls, path: Path) -> ProcessMark | None:
        """Read a mark that `write` left; None when there is none, or only what a power cut left of it."""
        try:
            value = json.loads(path.read_bytes())
            return cls(int(value["pid"]), float(value["create_time"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Keep it in a file.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        write_json_atomically(path, {"pid": self.pid, "create_time": self.create_time})

    @property
    def alive(self) -> bool:
        """Whether it still runs: not ended, not a zombie, and not another process with its number."""
        try:
            process = psutil.Process(self.pid)
            same: bool = abs(process.create_time() - self.create_time) < SAME_TIME
            ended: bool = process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            # Another user's: none that was started here.
            return False
        return same and not ended

    def send(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Send a signal if it still runs.

        Args:
            number: the signal.
            group: send it to the whole process group that it leads.

        Returns:
            Whether it was sent.
        """
        if not self.alive:
            return False
        with suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
            return True
        return False
