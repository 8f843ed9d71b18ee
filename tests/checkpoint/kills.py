"""A child process that kills itself as it is about to touch the disk for the n-th time: no clock is asked."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

TOUCHES = {
    "close",
    "fsync",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "unlink",
    "write",
    "writelines",
}
"""Functions of C that change what is on the disk, by their names in os and in files."""


def touches(action: Callable[[], object]) -> int:
    """How often an action touches the disk; it is done, by a child of this process."""
    receiving, sending = os.pipe()
    status = _in_child(action, kill_at=None, tell=sending)
    os.close(sending)
    with os.fdopen(receiving) as told:
        count = int(told.read())
    assert status == 0
    return count


def moments(action: Callable[[], object], count: int = 20) -> list[int]:
    """The first of an action's touches, the last, and some between, always the same; it is done, too."""
    last = touches(action)
    return [1, *sorted(random.Random(0).sample(range(2, last), count - 2)), last]


def kill_at(touch: int, action: Callable[[], object]) -> None:
    """Let a child do something and be gone before it touches the disk for the n-th time, from 1."""
    assert os.WTERMSIG(_in_child(action, kill_at=touch)) == signal.SIGKILL


def _in_child(action: Callable[[], object], *, kill_at: int | None, tell: int | None = None) -> int:
    # A fork, because a new interpreter would spend seconds on importing torch.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    # A fork has no threads but this one, and OpenMP would wait for the others.
    torch.set_num_threads(1)
    logging.disable()
    count = 0

    def watch(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_call" and function.__name__ in TOUCHES:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    code = 1
    try:
        action()
        sys.setprofile(None)
        if tell is not None:
            os.write(tell, str(count).encode())
        code = 0
    finally:
        # Without the parent's clean-up, of pytest's folders and all.
        os._exit(code)
