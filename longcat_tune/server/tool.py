"""Runs one command of the tool and waits for it, never longer than asked, and leaves nothing running.

All short commands of the web UI go through here; what takes hours is a job. Knows processes only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from longcat_tune.server.job_runner import NOT_STARTED

SAFE_PATH: Mapping[str, str] = {"PYTHONSAFEPATH": "1"}
"""Of the environment of every command: no file of the folder that it runs in passes for a module."""
TOLD = 2000
"""Most characters of a message that are shown."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left.

    Attributes:
        exit_code: of the process; None: it took too long and was ended.
        printed: on standard output.
        said: on standard error.
    """

    exit_code: int | None
    printed: bytes
    said: str

    @property
    def error(self) -> str:
        """The message that it ended with."""
        return error_in(self.said)


def error_in(said: str) -> str:
    """What the tool says is wrong, out of all that it said."""
    _, found, error = said.rpartition("error: ")
    told = (error if found else said).strip()[-TOLD:]
    return told or "the command ended without a word; try it in a terminal"


async def run_tool(
    words: Sequence[str], *, folder: Path, time_limit: float, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command without a shell; when nobody waits for it any more, it is ended with all it started.

    Args:
        words: of the command.
        folder: that it runs in.
        time_limit: in seconds.
        environment: more variables.
    """
    # Files: pipes that are left half read when a command is ended outlive it.
    with TemporaryFile() as out, TemporaryFile() as err:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=folder,
                env={**os.environ, **SAFE_PATH, **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            # Too many processes, or no memory for one more: told like any other failure of the command.
            said = f"error: the command cannot be started ({error.strerror}); try again"
            return Finished(NOT_STARTED, b"", said)
        try:
            async with asyncio.timeout(time_limit):
                code = await process.wait()
        except TimeoutError:
            return Finished(None, b"", f"error: took longer than {time_limit:g} s; try again to go on")
        finally:
            await _kill(process)
        return Finished(code, _read(out), _read(err).decode("utf-8", errors="replace"))


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a process and all that it started, if it has not ended."""
    if process.returncode is not None:
        return
    # It may have ended by itself a moment ago.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
