"""Trying out an attention kernel against the definition; knows no kernel by name.

Letters: B batch, A heads, N query tokens, M key tokens, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries [B, A, N, d], keys and values [B, A, M, d]."""

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

NUM_KEYS = 320
NUM_QUERIES = 192


def sample_heads(device: torch.device, dtype: torch.dtype, head_dim: int, *, training: bool) -> Heads:
    """Random queries, keys and values in the memory layout that a block gives them.

    Args:
        device: where they are.
        dtype: of all three.
        head_dim: d.
        training: whether they ask for gradients.

    Returns:
        Fewer queries than keys, as with condition frames.
    """
    generator = torch.Generator().manual_seed(0)
    qkv_BM3Ad = torch.randn(1, NUM_KEYS, 3, 2, head_dim, generator=generator).to(device, dtype)
    q_BAMd, k_BAMd, v_BAMd = qkv_BM3Ad.requires_grad_(training).permute(2, 0, 3, 1, 4)
    return q_BAMd[:, :, -NUM_QUERIES:], k_BAMd, v_BAMd


def worst_error(function: Attention, reference: Attention, heads: Heads) -> float:
    """The greatest relative error (Frobenius) of a function's result and of its gradients, if asked for.

    Args:
        function: on trial.
        reference: gives what is right.
        heads: from `sample_heads`.

    Returns:
        0 or more; infinite when the function gives NaN.
    """
    errors = [
        ((got.float() - right.float()).norm() / right.float().norm()).item()
        for got, right in zip(_results(function, heads), _results(reference, heads), strict=True)
    ]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _results(function: Attention, heads: Heads) -> list[Tensor]:
    out_BANd = function(*heads, None)
    if not heads[0].requires_grad:
        return [out_BANd]
    return [out_BANd, *torch.autograd.grad(out_BANd.float().square().sum(), heads)]
