"""Cutting a grid of tokens into boxes, and the order of tokens in which every box lies together.

Any grid: boxes at the far edges may be smaller. Knows no attention. Letters: N tokens, K boxes ("blocks").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""Frames, rows, columns."""

MIN_TILE = 16
"""Rows that a matrix instruction takes at least; shorter sequences go to the reference."""

SPAN_BASE = 1024
"""A span is start * SPAN_BASE + length, int32: blocks below 1024 tokens, sequences below 2 million."""


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Tokens in block order: blocks by frame, row and column, and the tokens inside a block likewise.

    Attributes:
        order_N: int64, where each token in this order comes from among those frame by frame.
        spans_K: int32, start and length of every block in this order, packed by SPAN_BASE.
        block_tokens: tokens of a block that no edge cuts.
        partial: whether some block is smaller than that.
    """

    order_N: Tensor
    spans_K: Tensor
    block_tokens: int
    partial: bool

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.order_N.numel()

    @property
    def num_blocks(self) -> int:
        """K."""
        return self.spans_K.numel()

    def starts(self) -> Tensor:
        """The first token of every block, int64."""
        return self.spans_K.long() // SPAN_BASE

    def lengths(self) -> Tensor:
        """How many tokens every block has, int64."""
        return self.spans_K.long() % SPAN_BASE

    def block_of_token(self) -> Tensor:
        """The block of every token in block order, int64."""
        blocks = torch.arange(self.num_blocks, device=self.spans_K.device)
        return blocks.repeat_interleave(self.lengths(), output_size=self.num_tokens)


def count_blocks(grid: Grid, chunk: Grid) -> int:
    """How many blocks a grid has, partial ones included."""
    return math.prod(math.ceil(size / part) for size, part in zip(grid, chunk, strict=True))


@lru_cache(maxsize=64)
def partition(grids: tuple[Grid, ...], chunk: Grid, device: torch.device) -> Partition:
    """Cut grids whose tokens follow each other; no block crosses from one to the next.

    Args:
        grids: condition frames and noise frames are two.
        chunk: frames, rows and columns of a block.
        device: where the tables are kept; made once and shared.

    Raises:
        ValueError: a size is not positive, or a block has too many tokens.
    """
    block_tokens = math.prod(chunk)
    if min(*chunk, *(size for grid in grids for size in grid)) < 1 or block_tokens >= SPAN_BASE:
        raise ValueError(
            f"chunk {chunk} of grids {grids}: sizes must be at least 1, with fewer than {SPAN_BASE} tokens "
            "in a chunk"
        )
    # The tables outlive the call: made while sampling, they must still serve training.
    with torch.inference_mode(mode=False), torch.device("cpu"):
        blocks_N, first_block = [], 0
        for grid in grids:
            blocks_N.append(_block_of_token(grid, chunk) + first_block)
            first_block += count_blocks(grid, chunk)
        block_N = torch.cat(blocks_N)
        lengths_K = block_N.bincount(minlength=first_block)
        starts_K = lengths_K.cumsum(0) - lengths_K
        return Partition(
            order_N=block_N.argsort(stable=True).to(device),
            spans_K=(starts_K * SPAN_BASE + lengths_K).to(device, torch.int32),
            block_tokens=block_tokens,
            partial=bool((lengths_K < block_tokens).any()),
        )


def _block_of_token(grid: Grid, chunk: Grid) -> Tensor:
    """The block of each token, tokens frame by frame."""
    block = torch.zeros(grid, dtype=torch.int64)
    for axis, (size, part) in enumerate(zip(grid, chunk, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = size
        block = block * math.ceil(size / part) + (torch.arange(size) // part).view(shape)
    return block.flatten()
