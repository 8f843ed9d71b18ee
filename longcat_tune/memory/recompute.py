"""Gradient checkpointing: a block's activations are dropped and computed again in backward.

Sees a list of blocks, never LongCat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def enable_recompute(blocks: nn.ModuleList, *, interval: int = 1) -> None:
    """Keep only the input of every interval-th block between forward and backward.

    The results and gradients stay the same to the bit, dropout included. A block's parameters and submodules
    are untouched, so adapters may be injected before or after. Without gradients nothing is recomputed.

    Args:
        blocks: called one after another; any arguments and outputs.
        interval: 1 for every block, 2 for the first, third, fifth, and so on.
    """
    for block in blocks[::interval]:
        # partial, not a closure: a deep copy of the model must call the copy's own forward.
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
