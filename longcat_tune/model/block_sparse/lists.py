"""Which key blocks each query block attends to, as sorted lists end to end, and the same by key block.

Letters: B batch, A heads, Q query blocks, K key blocks, E entries of the lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.partition import SPAN_BASE, Partition

ENTRIES_AT_ONCE = 1 << 20
"""Entries turned around at a time: 28 MB of sorting. A 93-frame 480p clip has 0.8 million in all."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockLists:
    """Key blocks of every query block.

    Attributes:
        pointers: int32 [B * A * Q + 1]; row r has the entries pointers[r] to pointers[r + 1].
        spans_E: int32, key blocks as spans of their partition, ascending in every row.
        head_ends: entries before head h of B * A, and all of them last; on the host, for launches.
    """

    pointers: Tensor
    spans_E: Tensor
    head_ends: tuple[int, ...]

    @classmethod
    def uniform(cls, spans_HQn: Tensor) -> BlockLists:
        """Rows of equal length, int32 [B * A, Q, n]; needs no word from the device."""
        heads, rows, length = spans_HQn.shape
        pointers = torch.arange(
            0, heads * rows * length + 1, length, dtype=torch.int32, device=spans_HQn.device
        )
        return cls(pointers, spans_HQn.flatten(), tuple(range(0, heads * rows * length + 1, rows * length)))

    @classmethod
    def of_mask(cls, mask_BAQK: Tensor, keys: Partition) -> BlockLists:
        """Rows of any length, empty ones too, from a boolean mask."""
        ends = mask_BAQK.sum(-1).flatten().cumsum(0)
        pointers = torch.cat([ends.new_zeros(1), ends])
        rows_per_head = mask_BAQK.shape[2]
        spans_E = keys.spans_K[mask_BAQK.nonzero()[:, -1]]
        return cls(pointers.int(), spans_E, tuple(pointers[::rows_per_head].tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Query blocks of every key block, for some of the heads.

    Attributes:
        first_head: of B * A.
        num_heads: how many follow it.
        pointers: int32 [num_heads * K + 1] into spans_E.
        spans_E: int32, query blocks as spans of their partition, ascending in every column.
        order_HK: int32, each head's key blocks, the most listed first.
    """

    first_head: int
    num_heads: int
    pointers: Tensor
    spans_E: Tensor
    order_HK: Tensor


def columns(lists: BlockLists, queries: Partition, keys: Partition) -> Iterator[Columns]:
    """Turn the lists around, some heads at a time so that the sorting needs little memory.

    Gives the groups of heads in order; a group is at least one head.
    """
    num_heads = len(lists.head_ends) - 1
    first = 0
    while first < num_heads:
        last = first + 1
        while last < num_heads and lists.head_ends[last + 1] - lists.head_ends[first] <= ENTRIES_AT_ONCE:
            last += 1
        yield _columns(lists, queries, keys, first, last)
        first = last


def _columns(lists: BlockLists, queries: Partition, keys: Partition, first: int, last: int) -> Columns:
    device = lists.spans_E.device
    heads, rows = last - first, queries.num_blocks
    entries = slice(lists.head_ends[first], lists.head_ends[last])
    row_ends = lists.pointers[first * rows + 1 : last * rows + 1] - entries.start
    num_entries = entries.stop - entries.start
    # The row of an entry is how many rows end at or before it.
    row_E = torch.searchsorted(
        row_ends, torch.arange(num_entries, dtype=torch.int32, device=device), right=True, out_int32=True
    )
    key_E = row_E // rows * keys.num_tokens + lists.spans_E[entries] // SPAN_BASE
    # Stable: the rows of a column stay ascending, and two runs stay equal to the bit.
    key_E, by_column = key_E.sort(stable=True)
    spans_E = queries.spans_K[row_E[by_column] % rows]
    first_keys = torch.arange(heads, device=device)[:, None] * keys.num_tokens + keys.starts()
    starts = torch.searchsorted(key_E, first_keys.flatten().int(), out_int32=True)
    pointers = torch.cat([starts, starts.new_full((1,), num_entries)])
    lengths_HK = pointers.diff().view(heads, -1)
    order_HK = lengths_HK.argsort(dim=1, descending=True, stable=True).int()
    return Columns(first, heads, pointers, spans_E, order_HK)
