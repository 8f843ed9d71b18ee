"""Runs one job, `python -m longcat_tune.server.job_runner JOB_DIR COMMAND...`, and writes down how it ended.

It stands between server and command line in a session of its own, so that a job outlives the server that
started it and its end is known to the next one. Knows nothing of what the command does.

SIGINT is passed on, once: a second one would break the command off before it has saved. SIGTERM ends the
command and all that it started: first asked to, then made to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from longcat_tune.errors import UserError
from longcat_tune.files import write_json_atomically
from longcat_tune.server.jobs_process import ProcessMark

CLAIMED, PROCESS, CHILD, ENDED = "claimed", "process.json", "child.json", "ended.json"
LOG, STOP, CANCEL = "log.txt", "stop.json", "cancel.json"
"""Names in a job's folder; the last two are there as soon as someone has asked for it."""

GRACE = 10.0
"""Seconds between asking a cancelled command to end and killing it."""

INTERRUPTED = 130
"""The exit code of a command that was stopped before it had started."""
NOT_STARTED = 127
"""The exit code of a command that is not there, as a shell has it."""


class Wrapper:
    """The process that waits for a command.

    Args:
        folder: of the job.
        grace: see GRACE.
    """

    def __init__(self, folder: Path, *, grace: float = GRACE) -> None:
        self._folder = folder
        self._grace = grace
        self._child: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._passed_on = False

    def run(self, command: Sequence[str]) -> int | None:
        """Run a command to its end.

        Args:
            command: program and arguments; no shell reads them.

        Returns:
            Its exit code; None when another wrapper has the job.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        # Before the claim: whoever finds it there may send signals.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._handle)
        if not self._claim():
            return None
        code = INTERRUPTED if self._called_off() else self._run(command)
        write_json_atomically(self._folder / ENDED, {"exit_code": code, "time": time.time()})
        return code

    def _claim(self) -> bool:
        """Take the job unless it is taken: a server killed while it starts one leaves it to the next."""
        try:
            (self._folder / CLAIMED).touch(exist_ok=False)
        except FileExistsError:
            return False
        ProcessMark.of(os.getpid()).write(self._folder / PROCESS)
        return True

    def _called_off(self) -> bool:
        return any((self._folder / name).exists() for name in (STOP, CANCEL))

    def _run(self, command: Sequence[str]) -> int:
        with (self._folder / LOG).open("ab", buffering=0) as log:
            try:
                # A group of its own: cancelling kills all of it, and this process has to tell of that.
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
                )
            except OSError as error:
                log.write(f"error: {command[0]} could not be started: {error.strerror}\n".encode())
                return NOT_STARTED
            self._write_down(self._child)
            while self._pending:
                self._handle(self._pending.pop(0), None)
            return self._child.wait()

    def _write_down(self, child: subprocess.Popen[bytes]) -> None:
        try:
            ProcessMark.of(child.pid).write(self._folder / CHILD)
        except UserError:
            # Nobody could stop it any more.
            self._kill(child, signal.SIGKILL)
            raise

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._child is None:
            self._pending.append(number)
        elif number == signal.SIGINT:
            self._pass_on(self._child)
        elif number == signal.SIGTERM:
            self._kill(self._child, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, self._grace)
        else:
            self._kill(self._child, signal.SIGKILL)

    def _pass_on(self, child: subprocess.Popen[bytes]) -> None:
        if not self._passed_on:
            self._passed_on = True
            # Does nothing once the command has ended.
            child.send_signal(signal.SIGINT)

    @staticmethod
    def _kill(child: subprocess.Popen[bytes], number: int) -> None:
        # Once waited for, its number may be another group's.
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)


def main(words: Sequence[str]) -> int:
    """Run the job of a folder.

    Args:
        words: the folder, then the command.

    Returns:
        0, however the command ended: that is in the folder.
    """
    Wrapper(Path(words[0])).run(words[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
