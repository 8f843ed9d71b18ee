"""Choosing the key blocks of every query block by the product of their means.

Scores are float32 whatever the model computes in, and ties go to the lower block, so that two runs and two
kernels choose alike; no gradient flows through the choice. Source: meituan-longcat/LongCat-Video,
longcat_video/block_sparse_attention; the kept count is never 0, which would silently give no attention.
Letters: B batch, A heads, H = B * A, N tokens in block order, d head width, Q query blocks, K key blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.lists import BlockLists
from longcat_tune.model.block_sparse.partition import Partition

SCORES_AT_ONCE = 1 << 20
"""Scores held at a time: at 48 frames of 704x1280 all of them would be 892 MB."""


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """How many key blocks a query block keeps; the greater count where both are given.

    Attributes:
        sparsity: the part of the key blocks that is dropped, 0 to below 1.
        cdf_threshold: keep the best blocks whose softmax weights sum to at most this.
    """

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.sparsity is None and self.cdf_threshold is None:
            raise ValueError("sparsity and cdf_threshold are both None; set at least one")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity ({self.sparsity}) must be at least 0 and below 1")

    def count(self, num_key_blocks: int) -> int:
        """Blocks kept by sparsity alone; 0 without it."""
        if self.sparsity is None:
            return 0
        # The official floor of a binary fraction loses a block at (0.9, 10), and all of them below 1.
        return max(1, math.floor((1 - self.sparsity) * num_key_blocks + 1e-6))


@torch.no_grad()
def select_lists(
    q_BANd: Tensor, k_BAMd: Tensor, queries: Partition, keys: Partition, rule: SelectionRule
) -> BlockLists:
    """The selection as lists, made in pieces that need little memory.

    Args:
        q_BANd: in the block order of queries.
        k_BAMd: in the block order of keys.
        queries: how the query tokens are cut.
        keys: how the key tokens are cut.
        rule: how many blocks to keep.
    """
    if rule.cdf_threshold is not None:
        return BlockLists.of_mask(select_mask(q_BANd, k_BAMd, queries, keys, rule), keys)
    means_q_HQd, means_k_HKd = _means(q_BANd, queries), _means(k_BAMd, keys)
    heads, rows = means_q_HQd.shape[:2]
    spans_HQn = keys.spans_K.new_empty(heads, rows, rule.count(keys.num_blocks))
    for head, row in _pieces(heads, rows, keys.num_blocks):
        scores = _scores(means_q_HQd[head, row], means_k_HKd[head])
        spans_HQn[head, row] = _best_spans(scores, keys.spans_K, spans_HQn.shape[-1])
    return BlockLists.uniform(spans_HQn)


@torch.no_grad()
def select_mask(
    q_BANd: Tensor, k_BAMd: Tensor, queries: Partition, keys: Partition, rule: SelectionRule
) -> Tensor:
    """The selection as a boolean mask [B, A, Q, K]; the arguments of `select_lists`."""
    means_q_HQd, means_k_HKd = _means(q_BANd, queries), _means(k_BAMd, keys)
    heads, rows = means_q_HQd.shape[:2]
    mask_HQK = torch.zeros(heads, rows, keys.num_blocks, dtype=torch.bool, device=q_BANd.device)
    count = rule.count(keys.num_blocks)
    for head, row in _pieces(heads, rows, keys.num_blocks):
        scores = _scores(means_q_HQd[head, row], means_k_HKd[head])
        if rule.cdf_threshold is None:
            mask_HQK[head, row] = mask_HQK[head, row].scatter(-1, _best(scores, count), value=True)
        else:
            scale = q_BANd.shape[-1] ** -0.5
            mask_HQK[head, row] = _within_cdf(scores, scale, rule.cdf_threshold, count)
    mask_BAQK: Tensor = mask_HQK.unflatten(0, q_BANd.shape[:2])
    return mask_BAQK


def _means(x_BANd: Tensor, cut: Partition) -> Tensor:
    """The mean token of every block, float32 [B * A, K, d]."""
    if x_BANd.is_cuda:
        from longcat_tune.model.block_sparse.launches import block_means

        return block_means(x_BANd, cut)
    x_HNd = x_BANd.flatten(0, 1)
    if not cut.partial:
        means_HKd: Tensor = x_HNd.unflatten(1, (cut.num_blocks, -1)).mean(2, dtype=torch.float32)
        return means_HKd
    lengths_K = cut.lengths()
    places = torch.arange(cut.block_tokens, device=x_BANd.device)
    tokens_Kb = cut.starts()[:, None] + places.minimum(lengths_K[:, None] - 1)
    weights_Kb1 = (places < lengths_K[:, None]).float()[..., None] / lengths_K[:, None, None]
    # Not as a matrix product, which autocast would make bf16.
    return torch.stack([(x_Nd[tokens_Kb].float() * weights_Kb1).sum(1) for x_Nd in x_HNd])


def _pieces(heads: int, rows: int, num_key_blocks: int) -> list[tuple[slice, slice]]:
    """Heads and query blocks whose scores are made together: whole heads, or some rows of one."""
    if rows * num_key_blocks <= SCORES_AT_ONCE:
        step = max(1, SCORES_AT_ONCE // (rows * num_key_blocks))
        return [(slice(head, head + step), slice(None)) for head in range(0, heads, step)]
    step = max(1, SCORES_AT_ONCE // num_key_blocks)
    return [
        (slice(head, head + 1), slice(row, row + step))
        for head in range(heads)
        for row in range(0, rows, step)
    ]


def _scores(means_q_HQd: Tensor, means_k_HKd: Tensor) -> Tensor:
    # Autocast would make the product bf16, whose ties and rounding move the cut.
    with torch.autocast(means_q_HQd.device.type, enabled=False):
        return means_q_HQd @ means_k_HKd.transpose(1, 2)


def _best_spans(scores_HQK: Tensor, spans_K: Tensor, count: int) -> Tensor:
    if scores_HQK.is_cuda:
        from longcat_tune.model.block_sparse.launches import best_spans

        return best_spans(scores_HQK, spans_K, count)
    return spans_K[_best(scores_HQK, count)]


def _best(scores_HQK: Tensor, count: int) -> Tensor:
    """Places of the highest scores, ascending, int64 [H, Q, count]; of equal scores the first."""
    # As an integer a float32 keeps its order once the negative ones are turned over; adding 0 makes -0.0 one
    # with 0.0. Below it the place, counted backwards, so that no two keys are equal.
    bits = (scores_HQK + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    places = torch.arange(scores_HQK.shape[-1] - 1, -1, -1, device=scores_HQK.device)
    return ((ordered << 32) + places).topk(count, dim=-1).indices.sort(-1).values


def _within_cdf(scores_HQK: Tensor, scale: float, threshold: float, at_least: int) -> Tensor:
    """Which blocks are among the best whose weights sum to at most the threshold; boolean."""
    ranked, places = (scores_HQK * scale).softmax(-1).sort(dim=-1, descending=True, stable=True)
    count = (ranked.cumsum(-1) <= threshold).sum(-1, keepdim=True).clamp(min=at_least)
    ranks = torch.arange(scores_HQK.shape[-1], device=scores_HQK.device)
    return torch.zeros_like(scores_HQK, dtype=torch.bool).scatter(-1, places, ranks < count)
