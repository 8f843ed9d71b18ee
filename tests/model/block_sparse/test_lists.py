"""Lists of blocks and the same turned around, against the boolean mask they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_tune.model.block_sparse import lists as lists_module
from longcat_tune.model.block_sparse.lists import BlockLists, columns
from longcat_tune.model.block_sparse.partition import Partition
from tests.model.block_sparse.blocks import cut

QUERIES, KEYS = cut((3, 5, 4), (2, 2, 2)), cut((5, 5, 4), (2, 2, 2))


def random_mask(*, keep: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, QUERIES.num_blocks, KEYS.num_blocks, generator=generator) < keep


def unpacked(spans: Tensor, of: Partition) -> list[int]:
    """Numbers of the blocks that spans stand for."""
    place = {span: block for block, span in enumerate(of.spans_K.tolist())}
    return [place[span] for span in spans.tolist()]


def test_rows_are_the_masks_blocks_in_order() -> None:
    mask = random_mask()
    mask[1, 2, 3] = False
    made = BlockLists.of_mask(mask, KEYS)
    for row, kept in enumerate(mask.flatten(0, 2)):
        entries = made.spans_E[made.pointers[row] : made.pointers[row + 1]]
        assert unpacked(entries, KEYS) == kept.nonzero().flatten().tolist()
    assert made.head_ends[-1] == mask.sum()


def test_rows_of_equal_length_need_no_mask() -> None:
    chosen = KEYS.spans_K[:4].expand(6, QUERIES.num_blocks, 4).contiguous()
    mask = torch.zeros(2, 3, QUERIES.num_blocks, KEYS.num_blocks, dtype=torch.bool)
    mask[..., :4] = True
    made, expected = BlockLists.uniform(chosen), BlockLists.of_mask(mask, KEYS)
    assert torch.equal(made.pointers, expected.pointers)
    assert torch.equal(made.spans_E, expected.spans_E)
    assert made.head_ends == expected.head_ends


@pytest.mark.parametrize("at_once", [1, 150, 1 << 20])
def test_columns_are_the_mask_transposed(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists_module, "ENTRIES_AT_ONCE", at_once)
    mask = random_mask()
    mask[0, 1, :, 2] = False
    groups = list(columns(BlockLists.of_mask(mask, KEYS), QUERIES, KEYS))
    assert len(groups) == {1: 6, 150: 3, 1 << 20: 1}[at_once]
    by_head = mask.flatten(0, 1)
    heads = [(group, head) for group in groups for head in range(group.num_heads)]
    assert [group.first_head + head for group, head in heads] == list(range(6))
    for group, head in heads:
        listed = by_head[group.first_head + head]
        for key in range(KEYS.num_blocks):
            column = head * KEYS.num_blocks + key
            entries = group.spans_E[group.pointers[column] : group.pointers[column + 1]]
            assert unpacked(entries, QUERIES) == listed[:, key].nonzero().flatten().tolist()
        order = group.order_HK[head].long()
        assert sorted(order.tolist()) == list(range(KEYS.num_blocks))
        assert (listed.sum(0)[order].diff() <= 0).all()


def test_empty_lists_have_empty_columns() -> None:
    (group,) = columns(BlockLists.of_mask(random_mask(keep=0), KEYS), QUERIES, KEYS)
    assert not group.pointers.any()
    assert group.spans_E.numel() == 0
