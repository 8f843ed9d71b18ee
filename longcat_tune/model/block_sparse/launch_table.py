"""Tiles, warps and pipeline stages of every kernel, by device, head width and dtype.

Chosen by compiling variants without a GPU (Triton 3.6.0 and 3.9.0, ptxas resource usage) and to be revised
by measurement with scripts/bench_attention.py. No autotuning: the first step of a run must not be a search.
A tile never exceeds a block, so that the chunk needs no column of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

KernelName = Literal["forward", "dq", "dkdv"]

HOPPER = (9, 0)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        block_m: query rows of a tile.
        block_n: key rows of a tile.
        num_warps: of 32 threads.
        num_stages: of the loads' pipeline; 1: none.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def launch_of(
    kernel: KernelName, *, capability: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> Launch:
    """The table's line for a kernel.

    Args:
        kernel: which one.
        capability: compute capability of the device.
        head_dim: d.
        dtype: of queries, keys and values.
    """
    if dtype.itemsize > 2:
        return FLOAT32[kernel]
    wide = head_dim > 128
    if capability >= HOPPER:
        return (HOPPER_WIDE if wide else HOPPER_HALF)[kernel]
    return (AMPERE_WIDE if wide else AMPERE_HALF)[kernel]


# Two programs to a multiprocessor, whose softmax and products overlap. 8 warps would halve the width of the
# matrix instructions (m64n32 instead of m64n64), which shared memory then cannot feed. dK and dV hold 128
# accumulators a thread: with 64 query rows they spill, with 32 they do not.
HOPPER_HALF: dict[KernelName, Launch] = {
    "forward": Launch(64, 64, 4, 2),
    "dq": Launch(64, 64, 4, 2),
    "dkdv": Launch(32, 64, 4, 2),
}
HOPPER_WIDE: dict[KernelName, Launch] = {
    "forward": Launch(64, 64, 8, 2),
    "dq": Launch(64, 32, 8, 2),
    "dkdv": Launch(32, 32, 8, 1),
}
# Compute capability 8.0 and 8.9, whose programs get 163 and 99 KiB of shared memory.
AMPERE_HALF: dict[KernelName, Launch] = {
    "forward": Launch(64, 64, 4, 2),
    "dq": Launch(64, 32, 4, 2),
    "dkdv": Launch(32, 64, 8, 2),
}
AMPERE_WIDE: dict[KernelName, Launch] = {
    "forward": Launch(64, 32, 8, 2),
    "dq": Launch(32, 32, 8, 1),
    "dkdv": Launch(32, 32, 8, 1),
}
# Exact float32 products, without tensor cores; for checks, not for speed.
FLOAT32: dict[KernelName, Launch] = {
    "forward": Launch(32, 32, 8, 1),
    "dq": Launch(32, 32, 8, 1),
    "dkdv": Launch(16, 32, 8, 1),
}
