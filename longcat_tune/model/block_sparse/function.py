"""Block-sparse attention of tokens in block order, with gradients; chooses between kernels and reference.

Letters: B batch, A heads, N query tokens, M key tokens, d head width, Q query blocks, K key blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat_tune.model.block_sparse.lists import BlockLists, columns
from longcat_tune.model.block_sparse.partition import MIN_TILE, Partition
from longcat_tune.model.block_sparse.reference import masked_attention
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists, select_mask


def attend_in_blocks(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, queries: Partition, keys: Partition, rule: SelectionRule
) -> Tensor:
    """Attention of each query block over the key blocks that it chooses.

    Args:
        q_BANd: in the block order of queries.
        k_BAMd: in the block order of keys.
        v_BAMd: in the block order of keys.
        queries: how the query tokens are cut.
        keys: how the key tokens are cut.
        rule: how many key blocks to choose.

    Returns:
        [B, A, N, d] in the inputs' dtype; under autocast in autocast's.
    """
    q_BANd, k_BAMd, v_BAMd = _autocast(q_BANd, k_BAMd, v_BAMd)
    if _has_kernels(q_BANd, queries, keys):
        lists = select_lists(q_BANd, k_BAMd, queries, keys, rule)
        return attend_by_kernel(q_BANd, k_BAMd, v_BAMd, lists, queries, keys)
    mask_BAQK = select_mask(q_BANd, k_BAMd, queries, keys, rule)
    return masked_attention(q_BANd, k_BAMd, v_BAMd, mask_BAQK, queries, keys)[0]


def attend_by_mask(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, queries: Partition, keys: Partition, mask_BAQK: Tensor
) -> Tensor:
    """Attention of each query block over the key blocks that a boolean mask gives it.

    Otherwise as `attend_in_blocks`.
    """
    q_BANd, k_BAMd, v_BAMd = _autocast(q_BANd, k_BAMd, v_BAMd)
    if _has_kernels(q_BANd, queries, keys):
        lists = BlockLists.of_mask(mask_BAQK, keys)
        return attend_by_kernel(q_BANd, k_BAMd, v_BAMd, lists, queries, keys)
    return masked_attention(q_BANd, k_BAMd, v_BAMd, mask_BAQK, queries, keys)[0]


def _autocast(*heads: Tensor) -> tuple[Tensor, ...]:
    """What torch's own attention does under autocast, which casts for torch's functions only."""
    device = heads[0].device.type
    if not torch.is_autocast_enabled(device):
        return heads
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in heads)


def _has_kernels(tensor: Tensor, queries: Partition, keys: Partition) -> bool:
    return tensor.is_cuda and min(queries.num_tokens, keys.num_tokens) >= MIN_TILE


def attend_by_kernel(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, lists: BlockLists, queries: Partition, keys: Partition
) -> Tensor:
    """The Triton kernels, forward and backward, on a CUDA device or in Triton's interpreter.

    Args:
        q_BANd: in the block order of queries.
        k_BAMd: in the block order of keys.
        v_BAMd: in the block order of keys.
        lists: key blocks of every query block.
        queries: how the query tokens are cut.
        keys: how the key tokens are cut.

    Returns:
        [B, A, N, d]; it lies in memory as [B, N, A, d], ready to be projected.
    """
    out_BANd: Tensor = _KernelAttention.apply(  # type: ignore[no-untyped-call]
        q_BANd, k_BAMd, v_BAMd, lists, queries, keys
    )
    return out_BANd


class _KernelAttention(torch.autograd.Function):
    """Saves what a fused dense kernel saves, and the lists; the chosen blocks count as constant."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BANd: Tensor,
        k_BAMd: Tensor,
        v_BAMd: Tensor,
        lists: BlockLists,
        queries: Partition,
        keys: Partition,
    ) -> Tensor:
        from longcat_tune.model.block_sparse.launches import attend

        heads = _with_rows(q_BANd), _with_rows(k_BAMd), _with_rows(v_BAMd)
        out_BANd, lse_BAN = attend(*heads, lists, queries, keys)
        # The lists, too: what is not saved this way stays alive beside what is recomputed.
        ctx.save_for_backward(*heads, out_BANd, lse_BAN, lists.pointers, lists.spans_E)
        ctx.head_ends, ctx.cuts = lists.head_ends, (queries, keys)
        return out_BANd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BANd: Tensor) -> tuple[Tensor | None, ...]:
        from longcat_tune.model.block_sparse.launches import dk_and_dv, dq_and_delta

        *heads, out_BANd, lse_BAN, pointers, spans_E = ctx.saved_tensors
        lists = BlockLists(pointers, spans_E, ctx.head_ends)
        dout_BANd = _with_rows(dout_BANd)
        dq_BANd, delta_BAN = dq_and_delta(heads, out_BANd, dout_BANd, lse_BAN, lists, ctx.cuts)
        grads = torch.empty_like(heads[1]), torch.empty_like(heads[2])
        for group in columns(lists, *ctx.cuts):
            dk_and_dv(heads, grads, dout_BANd, lse_BAN, delta_BAN, group, ctx.cuts)
        return dq_BANd, *grads, None, None, None


def _with_rows(x_BANd: Tensor) -> Tensor:
    """The kernels read a head's row as consecutive values; any other strides will do."""
    return x_BANd if x_BANd.stride(-1) == 1 else x_BANd.contiguous()
