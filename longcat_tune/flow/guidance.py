"""Classifier-free guidance as LongCat-Video does it: CFG-zero*, without the zero-init steps."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-8


def best_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """The factor that brings the unconditional prediction closest to the conditional one, per sample.

    Args:
        cond: [B, ...].
        uncond: [B, ...].

    Returns:
        [B, 1, ...]: <cond, uncond> / (|uncond|^2 + 1e-8) over everything but the batch.
    """
    flat_cond, flat_uncond = cond.flatten(1), uncond.flatten(1)
    scale_B = (flat_cond * flat_uncond).sum(1) / (flat_uncond.square().sum(1) + EPSILON)
    return scale_B.view(-1, *[1] * (cond.ndim - 1))


def guide(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """Guided prediction s u + g (c - s u), with s from `best_scale`.

    Source: Fan et al. 2025, CFG-Zero* (arXiv 2503.18886), equation 8; the official pipeline's version works
    for a batch of one only.
    """
    anchored = best_scale(cond, uncond) * uncond
    return anchored + guidance * (cond - anchored)
