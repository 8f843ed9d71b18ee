"""What a LoRA makes of one weight, in float32: for merging shard by shard, and for DoRA's norms at run time.

Knows single matrices; no module, no file. DoRA: Liu et al., arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def adapted_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Add scale * up @ down to a weight, in float32.

    Args:
        weight: [out, in], any floating dtype.
        down: [rank, in].
        up: [out, rank].
        scale: alpha / rank.
    """
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale)


def row_norms(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Lengths [out] of the rows of the adapted weight, in float32: what a new magnitude starts as."""
    return _lengths(adapted_weight(weight, down, up, scale))


def weight_change(
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    scale: float,
    *,
    magnitude: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """What a LoRA adds to a weight, in float32.

    Args:
        weight: [out, in], any floating dtype.
        down: [rank, in].
        up: [out, rank].
        scale: alpha / rank.
        magnitude: [out]: the length that each row of the adapted weight is brought to; None leaves them.
        strength: multiplies the change; 1 is as trained.
    """
    if magnitude is None:
        # The factor goes to the thin matrix: the product has up to 100 million numbers.
        return (strength * scale * up.float()) @ down.float()
    adapted = adapted_weight(weight, down, up, scale)
    factors = magnitude.float() / _lengths(adapted)
    return adapted.mul_(factors[:, None]).sub_(weight).mul_(strength)


def merged_weight(weight: Tensor, changes: Iterable[Tensor]) -> Tensor:
    """The weight with all changes added in float32, rounded once to the weight's own dtype."""
    merged = weight.to(torch.float32, copy=True)
    for change in changes:
        merged += change
    return merged.to(weight.dtype)


def _lengths(weight: Tensor) -> Tensor:
    """Of the rows; never zero, by which a magnitude is divided."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return lengths.clamp_min(torch.finfo(torch.float32).tiny)
