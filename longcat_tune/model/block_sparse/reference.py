"""The definition of block-sparse attention in plain torch: a mask over tokens and a softmax in float32.

What tests compare the kernels with and what runs without CUDA take; memory grows with the square of the
tokens. Letters: B batch, A heads, N query tokens, M key tokens, d head width, Q query blocks, K key blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.partition import Partition


def masked_attention(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, mask_BAQK: Tensor, queries: Partition, keys: Partition
) -> tuple[Tensor, Tensor]:
    """Attend to the tokens of the blocks that the mask keeps; an empty row gives zeros.

    Args:
        q_BANd: in the block order of queries.
        k_BAMd: in the block order of keys.
        v_BAMd: in the block order of keys.
        mask_BAQK: boolean, True = attended.
        queries: how the query tokens are cut.
        keys: how the key tokens are cut.

    Returns:
        The output in q's dtype [B, A, N, d], and the natural log-sum-exp [B, A, N], -inf for an empty row.
    """
    compute = torch.float64 if q_BANd.dtype == torch.float64 else torch.float32
    keep_BANM = mask_BAQK[:, :, queries.block_of_token()][..., keys.block_of_token()]
    filled_BAN1 = keep_BANM.any(-1, keepdim=True)
    # Autocast would make both products bf16.
    with torch.autocast(q_BANd.device.type, enabled=False):
        scores_BANM = q_BANd.to(compute) @ k_BAMd.to(compute).transpose(-1, -2) * q_BANd.shape[-1] ** -0.5
        scores_BANM = scores_BANM.masked_fill(~keep_BANM, float("-inf"))
        lse_BAN = scores_BANM.logsumexp(-1)
        # A softmax of nothing is NaN, and so would its gradient be.
        weights_BANM = scores_BANM.masked_fill(~filled_BAN1, 0.0).softmax(-1) * filled_BAN1
        return (weights_BANM @ v_BAMd.to(compute)).to(q_BANd.dtype), lse_BAN
