"""Small grids, their partitions and random heads, for the tests of block-sparse attention."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.partition import Grid, Partition, partition

CPU = torch.device("cpu")

DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
"""Where kernels run in the tests: on a GPU if there is one, else in the interpreter."""


def cut(grid: Grid, chunk: Grid, device: torch.device = CPU) -> Partition:
    return partition((grid,), chunk, device)


def random_heads(
    queries: Partition, keys: Partition, *, heads: int = 1, head_dim: int = 16, seed: int = 0, batch: int = 1
) -> list[Tensor]:
    """Queries, keys, values and an output's gradient in block order; blocks differ in their means."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(of: Partition) -> Tensor:
        noise = torch.randn(batch, heads, of.num_tokens, head_dim, generator=generator)
        means = torch.randn(batch, heads, of.num_blocks, head_dim, generator=generator)
        return (noise + means[:, :, of.block_of_token().cpu()]).to(of.spans_K.device)

    return [tokens(queries), tokens(keys), tokens(keys), tokens(queries)]


def relative_error(got: Tensor, right: Tensor) -> float:
    scale = right.double().norm().item()
    error = (got.double() - right.double()).norm().item()
    return error / scale if scale else error
