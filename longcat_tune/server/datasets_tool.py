"""Runs one command of the tool and waits for it, never longer than asked, and leaves nothing running.

Knows processes only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left.

    Attributes:
        exit_code: of the process; None: it could not be started, or took too long and was ended.
        printed: on standard output.
        said: on standard error.
    """

    exit_code: int | None
    printed: bytes
    said: str

    @property
    def error(self) -> str:
        """The message that it ended with."""
        return self.said.strip().rpartition("error: ")[2]


async def run_tool(words: Sequence[str], *, folder: Path, time_limit: float) -> Finished:
    """Run a command without a shell; when nobody waits for it any more, it is ended with all it started.

    Args:
        words: of the command.
        folder: that it runs in.
        time_limit: in seconds.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        # Too many processes, or no memory for one more: told like any other failure of the command.
        return Finished(None, b"", f"error: the command cannot be started ({error.strerror}); try again")
    try:
        async with asyncio.timeout(time_limit):
            printed, said = await process.communicate()
    except TimeoutError:
        return Finished(None, b"", f"error: took longer than {time_limit:g} s; try again to go on")
    finally:
        if process.returncode is None:
            # It may have ended by itself a moment ago.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Finished(process.returncode, printed, said.decode("utf-8", errors="replace"))
