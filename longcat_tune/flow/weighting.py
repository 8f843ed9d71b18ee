"""How much each noise level's loss counts; knows the training density, and no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from longcat_tune.flow.density import SigmaDensity

LossWeighting = Literal["none", "sigma_sqrt", "bell"]

Weigh = Callable[[Tensor], Tensor]
"""sigma_B to the weight of each sample's loss, both float32 [B]."""

QUANTILES = 10_000
"""Evenly spread points of the density that a mean over it is taken from."""


def equal_weights(sigma_B: Tensor) -> Tensor:
    """Weigh every noise level with 1."""
    return torch.ones_like(sigma_B)


def sigma_sqrt_weights(sigma_B: Tensor) -> Tensor:
    """Weigh with 1 / sigma^2.

    Source: `sigma_sqrt` of compute_loss_weighting_for_sd3 in huggingface/diffusers,
    src/diffusers/training_utils.py. It grows without bound towards sigma 0, and its mean over a uniform or
    beta density is infinite; a lower end of the noise window bounds it.
    """
    return sigma_B**-2.0


def bell(sigma_B: Tensor) -> Tensor:
    """Give exp(-2 (sigma - 1/2)^2) - exp(-1/2): highest in the middle, 0 at sigma 0 and 1.

    Source: the training weight of DiffSynth-Studio's FlowMatchScheduler (diffsynth/diffusion/flow_match.py),
    there over timesteps t of 1000: exp(-2 ((t - 500) / 1000)^2) less its smallest value, scaled to mean 1.
    """
    # Rounding may fall a hair below 0 at the ends.
    return (torch.exp(-2 * (sigma_B - 0.5) ** 2) - math.exp(-0.5)).clamp(min=0)


def weighting(kind: LossWeighting, density: SigmaDensity) -> Weigh:
    """Choose how losses are weighed.

    `bell` is scaled to mean 1 under the training density, so that the learning rate keeps its meaning; where
    that is uniform, the weights are DiffSynth-Studio's.

    Args:
        kind: which.
        density: that noise levels are drawn from.
    """
    if kind == "none":
        return equal_weights
    if kind == "sigma_sqrt":
        return sigma_sqrt_weights
    shares = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    mean = bell(density.quantile(shares)).mean().item()
    return lambda sigma_B: bell(sigma_B) / mean
