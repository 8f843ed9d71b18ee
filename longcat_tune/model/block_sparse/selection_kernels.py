"""Triton kernels of the selection: the mean token of a block, and the best key blocks of a row of scores.

The choice is the one of `selection`: by the order of the float32 bits, equal scores by the lower block.
"""
# ruff: noqa: ANN001, ANN201, PLR0913 - a kernel's arguments are its launch interface, untyped by Triton's rule

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def means_kernel(
    x_ptr,
    means_ptr,
    spans_ptr,
    num_blocks,
    num_heads,
    stride_b,
    stride_a,
    stride_n,
    SPAN_BASE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: the float32 mean of one block of one head."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    span = tl.load(spans_ptr + block)
    start = (span // SPAN_BASE).to(tl.int64)
    length = span % SPAN_BASE
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK_D)
    base = x_ptr + (head // num_heads).to(tl.int64) * stride_b + (head % num_heads).to(tl.int64) * stride_a
    base += start * stride_n
    here = (rows[:, None] < length) & (cols[None, :] < HEAD_DIM)
    x = tl.load(base + rows[:, None] * stride_n + cols[None, :], mask=here, other=0.0)
    mean = tl.sum(x.to(tl.float32), 0) / length.to(tl.float32)
    out = means_ptr + (head.to(tl.int64) * num_blocks + block) * HEAD_DIM + cols
    tl.store(out, mean, mask=cols < HEAD_DIM)


@triton.jit
def best_kernel(scores_ptr, spans_ptr, chosen_ptr, num_keys, count, BLOCK_K: tl.constexpr):
    """One program: the spans of the `count` best key blocks of one row of scores, ascending.

    The lowest score that is kept is found bit by bit, counting in registers; sorting the row would cost more
    than the attention.
    """
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_K)
    here = cols < num_keys
    scores = tl.load(scores_ptr + row * num_keys + cols, mask=here, other=0.0) + 0.0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.uint32, bitcast=True) ^ 0x80000000
    ordered = tl.where(here, ordered, 0)

    lowest = tl.full([], 0, tl.uint32)
    for bit in range(32):
        higher = lowest | (tl.full([], 0x80000000, tl.uint32) >> bit)
        lowest = tl.where(tl.sum((ordered >= higher).to(tl.int32), 0) >= count, higher, lowest)

    above = here & (ordered > lowest)
    equal = here & (ordered == lowest)
    free = count - tl.sum(above.to(tl.int32), 0)
    kept = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= free))
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    spans = tl.load(spans_ptr + cols, mask=here, other=0)
    tl.store(chosen_ptr + row * count + place, spans, mask=kept)
