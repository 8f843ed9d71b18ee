"""The training loss, unreduced over the batch so that it can be told apart by noise level."""

from __future__ import annotations

from torch import Tensor


def flow_loss(prediction_BCTHW: Tensor, target_BCTHW: Tensor, *, num_cond_latents: int) -> Tensor:
    """Mean squared error over the noised frames, per sample, in float32.

    Args:
        prediction_BCTHW: the transformer's raw output.
        target_BCTHW: clean - noise.
        num_cond_latents: leading frames that are given, not predicted.

    Returns:
        Float32 [B].
    """
    error = prediction_BCTHW[:, :, num_cond_latents:].float() - target_BCTHW[:, :, num_cond_latents:].float()
    return error.square().flatten(1).mean(1)
