"""Cutting grids into blocks, against a walk over all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_tune.model.block_sparse.partition import SPAN_BASE, Grid, count_blocks, partition
from tests.model.block_sparse.blocks import CPU, cut

sizes = st.tuples(*[st.integers(1, 6)] * 3)


def walked(grid: Grid, chunk: Grid) -> list[list[int]]:
    """Tokens of every block, by loops."""
    blocks = []
    for corner in itertools.product(*(range(0, size, part) for size, part in zip(grid, chunk, strict=True))):
        axes = [
            range(start, min(start + part, size))
            for start, part, size in zip(corner, chunk, grid, strict=True)
        ]
        blocks.append([(t * grid[1] + h) * grid[2] + w for t, h, w in itertools.product(*axes)])
    return blocks


@settings(max_examples=40, deadline=None)
@given(grid=sizes, chunk=sizes)
def test_blocks_hold_the_tokens_of_their_box(grid: Grid, chunk: Grid) -> None:
    cuts, blocks = cut(grid, chunk), walked(grid, chunk)
    assert cuts.order_N.tolist() == [token for block in blocks for token in block]
    assert cuts.lengths().tolist() == [len(block) for block in blocks]
    assert cuts.num_blocks == count_blocks(grid, chunk) == len(blocks)
    assert cuts.partial == any(len(block) < cuts.block_tokens for block in blocks)
    assert cuts.block_of_token().tolist() == [i for i, block in enumerate(blocks) for _ in block]


def test_no_block_crosses_from_condition_to_noise() -> None:
    both = partition(((1, 4, 4), (5, 4, 4)), (4, 4, 4), CPU)
    assert both.lengths().tolist() == [16, 64, 16]
    assert both.order_N[:16].tolist() == list(range(16))
    assert sorted(both.order_N.tolist()) == list(range(96))


def test_aligned_condition_frames_are_cut_as_the_whole_grid_is() -> None:
    apart, whole = partition(((4, 8, 8), (8, 8, 8)), (4, 4, 4), CPU), cut((12, 8, 8), (4, 4, 4))
    assert torch.equal(apart.order_N, whole.order_N)
    assert torch.equal(apart.spans_K, whole.spans_K)


def test_tables_made_while_sampling_serve_training() -> None:
    with torch.inference_mode():
        cuts = partition(((3, 5, 7),), (2, 2, 2), CPU)
    assert not cuts.spans_K.is_inference()
    assert partition(((3, 5, 7),), (2, 2, 2), CPU) is cuts


@pytest.mark.parametrize(("grid", "chunk"), [((0, 4, 4), (4, 4, 4)), ((4, 4, 4), (4, 0, 4))])
def test_empty_grids_and_chunks_are_refused(grid: Grid, chunk: Grid) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cut(grid, chunk)


def test_chunks_that_a_span_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=str(SPAN_BASE)):
        cut((8, 16, 16), (4, 16, 16))
