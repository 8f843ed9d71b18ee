"""Launching the Triton kernels on tensors, in the interpreter too; the only importer of the kernels.

Letters: B batch, A heads, H = B * A, N query tokens, M key tokens, d head width, K key blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from longcat_tune.model.block_sparse import kernels, selection_kernels
from longcat_tune.model.block_sparse.launch_table import HOPPER, KernelName, launch_of
from longcat_tune.model.block_sparse.lists import BlockLists, Columns
from longcat_tune.model.block_sparse.partition import MIN_TILE, SPAN_BASE, Partition

LOG2_E = math.log2(math.e)

INTERPRETED = bool(triton.knobs.runtime.interpret)


def attend(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, lists: BlockLists, queries: Partition, keys: Partition
) -> tuple[Tensor, Tensor]:
    """Attention over the listed blocks.

    Args:
        q_BANd: in the block order of queries, any strides but 1 along d.
        k_BAMd: in the block order of keys.
        v_BAMd: in the block order of keys.
        lists: key blocks of every query block.
        queries: how the query tokens are cut.
        keys: how the key tokens are cut.

    Returns:
        The output, which lies in memory as [B, N, A, d], and the base-2 log-sum-exp [B, A, N], float32.
    """
    batch, heads, num_queries, head_dim = q_BANd.shape
    out_BANd = q_BANd.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2)
    lse_BAN = q_BANd.new_empty(batch, heads, num_queries, dtype=torch.float32)
    tiles = _tiles("forward", q_BANd, queries, keys)
    with torch.cuda.device_of(q_BANd):
        kernels.forward_kernel[queries.num_blocks * tiles["TILES_M"], batch * heads](
            q_BANd,
            k_BAMd,
            v_BAMd,
            out_BANd,
            lse_BAN,
            lists.pointers,
            lists.spans_E,
            queries.spans_K,
            queries.num_blocks,
            heads,
            num_queries,
            keys.num_tokens,
            *_strides(q_BANd, k_BAMd, v_BAMd, out_BANd),
            LOG2_E * head_dim**-0.5,
            PARTIAL=_cut(keys, tiles["BLOCK_N"]),
            **tiles,
        )
    return out_BANd, lse_BAN


def dq_and_delta(
    heads: tuple[Tensor, Tensor, Tensor],
    out_BANd: Tensor,
    dout_BANd: Tensor,
    lse_BAN: Tensor,
    lists: BlockLists,
    cuts: tuple[Partition, Partition],
) -> tuple[Tensor, Tensor]:
    """Gradient of the queries, and delta = sum(out * dout) [B, A, N] for `dk_and_dv`.

    Args:
        heads: queries, keys and values of the forward pass.
        out_BANd: its output.
        dout_BANd: gradient of the output.
        lse_BAN: its log-sum-exp, base 2.
        lists: its lists.
        cuts: how query and key tokens are cut.
    """
    q_BANd, k_BAMd, v_BAMd = heads
    queries, keys = cuts
    batch, num_heads, num_queries, head_dim = q_BANd.shape
    dq_BANd, delta_BAN = torch.empty_like(q_BANd), torch.empty_like(lse_BAN)
    tiles = _tiles("dq", q_BANd, queries, keys)
    with torch.cuda.device_of(q_BANd):
        kernels.dq_kernel[queries.num_blocks * tiles["TILES_M"], batch * num_heads](
            q_BANd,
            k_BAMd,
            v_BAMd,
            out_BANd,
            dout_BANd,
            dq_BANd,
            lse_BAN,
            delta_BAN,
            lists.pointers,
            lists.spans_E,
            queries.spans_K,
            queries.num_blocks,
            num_heads,
            num_queries,
            keys.num_tokens,
            *_strides(q_BANd, k_BAMd, v_BAMd, out_BANd, dout_BANd, dq_BANd),
            head_dim**-0.5,
            LOG2_E * head_dim**-0.5,
            PARTIAL=_cut(keys, tiles["BLOCK_N"]),
            **tiles,
        )
    return dq_BANd, delta_BAN


def dk_and_dv(
    heads: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor],
    dout_BANd: Tensor,
    lse_BAN: Tensor,
    delta_BAN: Tensor,
    columns: Columns,
    cuts: tuple[Partition, Partition],
) -> None:
    """Write the gradients of keys and values for the heads that the columns are of.

    Args:
        heads: queries, keys and values of the forward pass.
        grads: dK and dV of all heads, in which those heads are filled.
        dout_BANd: gradient of the output.
        lse_BAN: log-sum-exp of the forward pass, base 2.
        delta_BAN: from `dq_and_delta`.
        columns: query blocks of every key block.
        cuts: how query and key tokens are cut.
    """
    q_BANd, k_BAMd, v_BAMd = heads
    queries, keys = cuts
    head_dim = q_BANd.shape[-1]
    tiles = _tiles("dkdv", q_BANd, queries, keys)
    with torch.cuda.device_of(q_BANd):
        kernels.dkdv_kernel[keys.num_blocks * tiles["TILES_N"], columns.num_heads](
            q_BANd,
            k_BAMd,
            v_BAMd,
            dout_BANd,
            *grads,
            lse_BAN,
            delta_BAN,
            columns.pointers,
            columns.spans_E,
            keys.spans_K,
            columns.order_HK,
            columns.first_head,
            keys.num_blocks,
            q_BANd.shape[1],
            queries.num_tokens,
            keys.num_tokens,
            *_strides(q_BANd, k_BAMd, v_BAMd, dout_BANd, *grads),
            head_dim**-0.5,
            LOG2_E * head_dim**-0.5,
            PARTIAL=_cut(queries, tiles["BLOCK_M"]),
            **tiles,
        )


def block_means(x_BANd: Tensor, cut: Partition) -> Tensor:
    """The mean token of every block, float32 [B * A, K, d]."""
    batch, heads, _, head_dim = x_BANd.shape
    means_HKd = x_BANd.new_empty(batch * heads, cut.num_blocks, head_dim, dtype=torch.float32)
    with torch.cuda.device_of(x_BANd):
        selection_kernels.means_kernel[cut.num_blocks, batch * heads](
            x_BANd,
            means_HKd,
            cut.spans_K,
            cut.num_blocks,
            heads,
            *_strides(x_BANd),
            SPAN_BASE=SPAN_BASE,
            BLOCK=triton.next_power_of_2(cut.block_tokens),
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return means_HKd


def best_spans(scores_HQK: Tensor, spans_K: Tensor, count: int) -> Tensor:
    """Spans of the best key blocks of every row, ascending, int32 [H, Q, count]; scores lie contiguous."""
    heads, rows, num_keys = scores_HQK.shape
    out_HQn = spans_K.new_empty(heads, rows, count)
    width = triton.next_power_of_2(num_keys)
    with torch.cuda.device_of(scores_HQK):
        selection_kernels.best_kernel[(heads * rows,)](
            scores_HQK,
            spans_K,
            out_HQn,
            num_keys,
            count,
            BLOCK_K=width,
            # 32 scores a thread stay in registers.
            num_warps=min(max(width // 1024, 1), 16),
            enable_fp_fusion=True,
        )
    return out_HQn


def _tiles(kernel: KernelName, q_BANd: Tensor, queries: Partition, keys: Partition) -> dict[str, Any]:
    """Constants and options of a launch; a tile exceeds neither its block nor the tokens there are."""
    head_dim = q_BANd.shape[-1]
    capability = torch.cuda.get_device_capability(q_BANd.device) if q_BANd.is_cuda else HOPPER
    # The interpreter takes time by the tile, and has room for those of half precision.
    dtype = torch.bfloat16 if INTERPRETED else q_BANd.dtype
    launch = launch_of(kernel, capability=capability, head_dim=head_dim, dtype=dtype)
    block_m, block_n = _tile_size(launch.block_m, queries), _tile_size(launch.block_n, keys)
    return {
        "SPAN_BASE": SPAN_BASE,
        "TILES_M": triton.cdiv(queries.block_tokens, block_m),
        "TILES_N": triton.cdiv(keys.block_tokens, block_n),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(MIN_TILE, triton.next_power_of_2(head_dim)),
        # The interpreter multiplies the bits of bfloat16 as integers.
        "UPCAST": INTERPRETED and q_BANd.dtype == torch.bfloat16,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,
    }


def _tile_size(wanted: int, cut: Partition) -> int:
    fits = 1 << (cut.num_tokens.bit_length() - 1)
    return max(MIN_TILE, min(wanted, 1 << (cut.block_tokens - 1).bit_length(), fits))


def _cut(cut: Partition, tile: int) -> bool:
    """Whether a tile may hold rows of another block."""
    return cut.partial or cut.block_tokens % tile != 0


def _strides(*tensors: Tensor) -> list[int]:
    """Strides of batch, head and token, one tensor after the other.

    An axis of one element may have any stride, and one that is no multiple of 16 would make Triton load each
    value by itself: 0 is one.
    """
    return [
        stride if size > 1 else 0
        for tensor in tensors
        for size, stride in zip(tensor.shape[:3], tensor.stride()[:3], strict=True)
    ]
