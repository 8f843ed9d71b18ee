"""Gradient checkpointing: a block's activations are dropped and computed again in backward.

Sees a list of blocks, never LongCat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from longcat_tune.memory.boundaries import Boundaries


def enable_recompute(
    blocks: nn.ModuleList, *, interval: int = 1, boundaries: Boundaries | None = None
) -> None:
    """Keep only the input of every interval-th block between forward and backward.

    The results and gradients stay the same to the bit, dropout included. A block's parameters and submodules
    are untouched, so adapters may be injected before or after. Without gradients nothing is recomputed.

    Args:
        blocks: called one after another; any arguments and outputs.
        interval: 1 for every block, 2 for the first, third, fifth, and so on.
        boundaries: keeps the blocks' inputs in host memory; None leaves them on the device.
    """
    for block in blocks[::interval]:
        # partial, not a closure: a deep copy of the model must call the copy's own forward.
        block.forward = functools.partial(_recomputed, block.forward, boundaries)


def _recomputed(forward: Callable[..., Any], boundaries: Boundaries | None, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # checkpoint saves the block's arguments outside of its own hooks, so these see them and nothing else.
    with nullcontext() if boundaries is None else boundaries.saving():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
