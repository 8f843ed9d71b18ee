"""Flat host memory, page-locked where the device copies from it, or mapped from a file.

Knows bytes; nothing of what lies in them.
"""

from __future__ import annotations

import json
import logging
import math
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil
import torch
from torch import Tensor

from longcat_tune.files import explained_disk_errors

logger = logging.getLogger(__name__)

PAGE = 4096
"""Bytes; memory is page-locked in whole pages, of which no other memory may have a part."""

RESERVE = 2 << 30
"""Bytes of host memory that are left to others: page-locked memory cannot be swapped out."""

MAPPED = "weights"
"""Name of the one tensor in a file that is mapped."""


class HostMemory:
    """Host memory that begins a page; it stays page-locked as long as this object lives.

    Locked in place, because torch's own pinned allocator rounds 564 MB up to 1 GB. Where it cannot be locked,
    copies are staged by the CUDA driver: slower, and the host waits for them.

    Args:
        num_bytes: of the memory.
        pinned: page-lock it, so that copies to the device run beside its computation.

    Attributes:
        bytes: the memory, uint8 [num_bytes]; not initialised.
    """

    def __init__(self, num_bytes: int, *, pinned: bool) -> None:
        size = math.ceil(num_bytes / PAGE) * PAGE
        whole = torch.empty(size + PAGE, dtype=torch.uint8)
        pages = whole.narrow(0, -whole.data_ptr() % PAGE, size)
        self.bytes = pages[:num_bytes]
        if pinned and _page_lock(pages):
            # The finalizer holds the memory until it is unlocked; at exit the system does both.
            weakref.finalize(self, _unlock, pages).atexit = False

    @property
    def num_bytes(self) -> int:
        """Size of the memory."""
        return self.bytes.numel()


def mapped(memory: Tensor, folder: Path) -> Tensor:
    """Put bytes into a safetensors file and give them as they lie there: read when they are used.

    The file has no name any more when this returns; its room on the disk is free again when the last use of
    the bytes ends, however the process does.

    Args:
        memory: flat, uint8.
        folder: for the file; made when missing.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    from safetensors import safe_open

    size = memory.numel()
    entry = {MAPPED: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    # Written by hand, with a header that fills a page: safetensors' own writer copies everything first, and
    # aligns to 8 bytes only.
    header = json.dumps(entry).encode().ljust(PAGE - 8)
    with explained_disk_errors(folder / "block.safetensors"):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix="block-", suffix=".safetensors") as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            file.write(memory.numpy().data)
            file.flush()
            with safe_open(file.name, framework="pt") as opened:
                there: Tensor = opened.get_tensor(MAPPED)
    return there


def _page_lock(pages: Tensor) -> bool:
    """Lock memory that shares no page with anything else; False where that cannot be."""
    if psutil.virtual_memory().available < pages.numel() + RESERVE:
        _warn_pageable(f"less than {RESERVE >> 30} GiB of it would be left to others")
        return False
    failure = int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
    if failure:
        _forget_failure()
        _warn_pageable(f"CUDA error {failure}; the limit of locked memory, ulimit -l, may be too low")
    return not failure


def _unlock(pages: Tensor) -> None:
    # Copies from it may still be under way.
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())


def _forget_failure() -> None:
    """Let CUDA's runtime report its last failure here, or it would to the next kernel that is launched."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")


@cache
def _warn_pageable(reason: str) -> None:
    """Say once per reason what the lack of page-locked memory costs."""
    logger.warning(
        "Host memory could not be page-locked (%s): copies to and from the device are slower and hold up the "
        "computation. Free host memory, or offload less",
        reason,
    )
