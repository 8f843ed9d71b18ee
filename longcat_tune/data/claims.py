"""Who makes which file when several processes fill one cache: claims that vanish with their process.

Knows jobs by the file they make and nothing else of them.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

from longcat_tune.files import explained_disk_errors

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

LOCK_NAME = "claims.lock"
"""The file that processes lock bytes of; empty, and of no use when nothing is being filled."""
SECONDS_BETWEEN_LOOKS = 0.5
NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What network file systems without a lock service answer."""


class Job(Protocol):
    """Something that makes one file."""

    @property
    def path(self) -> Path:
        """The file, in the folder whose processes share the work."""


AnyJob = TypeVar("AnyJob", bound=Job)


class Claims:
    """The files that this process is about to make.

    A claim is a lock on one byte of `claims.lock` beside the file, at a place that follows from its name: the
    system drops it when the process ends, however it ends. Locks belong to the process, so that at most one
    Claims may be open at a time: a second one would get, and give back, what the first one holds.

    Where there are no such locks every claim is granted: a file made twice is the same file.
    """

    def __init__(self) -> None:
        self._locks: dict[Path, int] = {}

    def take(self, path: Path) -> bool:
        """Claim a file; False when another process has it.

        Raises:
            UserError: the lock file cannot be made.
        """
        if sys.platform == "win32":
            return True
        descriptor = self._lock_file(path.parent)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(path))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise
        return True

    def release(self, path: Path) -> None:
        """Give a claim back, after the file was made or when it will not be."""
        if sys.platform != "win32":
            fcntl.lockf(self._locks[path.parent], fcntl.LOCK_UN, 1, _place(path))

    def close(self) -> None:
        """Give all claims back."""
        while self._locks:
            os.close(self._locks.popitem()[1])

    def _lock_file(self, folder: Path) -> int:
        """The folder's one descriptor: closing any other would drop all locks that the process has there."""
        if folder not in self._locks:
            path = folder / LOCK_NAME
            with explained_disk_errors(path):
                folder.mkdir(parents=True, exist_ok=True)
                self._locks[folder] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        return self._locks[folder]


def make_once(
    jobs: Sequence[AnyJob],
    *,
    is_there: Callable[[AnyJob], bool],
    make: Callable[[Iterable[AnyJob]], Generator[AnyJob, None, None]],
    on_done: Callable[[AnyJob], None],
) -> int:
    """Make every file once, though several processes are given the same jobs.

    What another process has claimed is left to it, and looked at again after the rest is done: its file is
    there then, or its claim is free because it ended, and the file is made here. Nothing is claimed while
    this waits, so that two processes never wait for each other.

    Args:
        jobs: what to make, one per file.
        is_there: whether a job's file is complete.
        make: takes claimed jobs, makes their files and yields each job when its file is complete, or when it
            will not be. It may draw ahead; what it raises gives all claims back and passes through.
        on_done: told of each job when it is done with, whoever made its file.

    Returns:
        How many were done with here.

    Raises:
        UserError: a lock file cannot be made.
    """
    done_here, left = 0, jobs
    with closing(Claims()) as claims:
        while left:
            others: list[AnyJob] = []
            claimed = _claimed(left, claims, is_there=is_there, on_done=on_done, others=others)
            done_here += _finish(make(claimed), claims, on_done)
            if others and left is jobs:
                logger.info("Another process is filling the same cache; it has %d of the files", len(others))
            if others:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            left = others
    return done_here


def _finish(making: Generator[AnyJob, None, None], claims: Claims, on_done: Callable[[AnyJob], None]) -> int:
    """Give back the claim of each file as it is made; returns how many were."""
    count = 0
    with closing(making):
        for job in making:
            claims.release(job.path)
            on_done(job)
            count += 1
    return count


def _claimed(
    jobs: Iterable[AnyJob],
    claims: Claims,
    *,
    is_there: Callable[[AnyJob], bool],
    on_done: Callable[[AnyJob], None],
    others: list[AnyJob],
) -> Iterator[AnyJob]:
    """Claim job after job as they are asked for, and set aside those of other processes."""
    for job in jobs:
        if is_there(job):
            on_done(job)
        elif not claims.take(job.path):
            others.append(job)
        elif is_there(job):  # finished between the look and the claim
            claims.release(job.path)
            on_done(job)
        else:
            yield job


def _place(path: Path) -> int:
    """Which byte stands for a file; 56 bits of it."""
    return int.from_bytes(hashlib.blake2b(path.name.encode(), digest_size=7).digest(), "big")
