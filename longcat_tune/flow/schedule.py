"""Sigma schedules: the shift that training and sampling share, and the grids that sampling walks down.

Sigma is the noise level, 1 pure noise to 0 clean; the transformer's timestep is 1000 sigma.
Source: meituan-longcat/LongCat-Video, longcat_video/pipeline_longcat_video.py (get_timesteps_sigmas) and
diffusers' FlowMatchEulerDiscreteScheduler (shift).
"""

from __future__ import annotations

import torch
from torch import Tensor

TIMESTEPS = 1000.0
"""The model's timestep at sigma 1."""

LOWEST_RAW_SIGMA = 0.001
DISTILLED_GRID = 50
"""The distilled LoRA was trained on this many evenly spaced timesteps."""

HIGH_FREQUENCY_FROM = 500.0
HIGH_FREQUENCY_STEP = 50.0


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1: shift s / (1 + (shift - 1) s); 0 and 1 stay."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shift_sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


def inference_sigmas(
    num_steps: int, shift: float = 12.0, distilled: bool = False, *, enhance_high_frequency: bool = False
) -> Tensor:
    """The sigmas of a render, falling, with the final 0.

    Args:
        num_steps: model evaluations, at least 1.
        shift: 12 for the released model.
        distilled: the grid of the cfg_step_lora, at most 50 steps.
        enhance_high_frequency: below timestep 500 walk down evenly by 50 instead, as the authors do for
        continuation;
            the number of steps is then no longer num_steps (50 gives 56).

    Returns:
        Float32 [steps + 1]; `timesteps` turns all but the last into model timesteps.

    Raises:
        ValueError: num_steps is out of range, or both variants are asked for.
    """
    if num_steps < 1 or (distilled and num_steps > DISTILLED_GRID):
        limit = f"1 to {DISTILLED_GRID} with the distilled schedule" if distilled else "at least 1"
        msg = f"num_steps ({num_steps}) must be {limit}"
        raise ValueError(msg)
    if distilled and enhance_high_frequency:
        msg = "enhance_high_frequency cannot be combined with the distilled schedule; drop one of them"
        raise ValueError(msg)
    sigmas = shift_sigma(_distilled_grid(num_steps) if distilled else _even_grid(num_steps), shift)
    if enhance_high_frequency:
        tail = torch.arange(HIGH_FREQUENCY_FROM, 0, -HIGH_FREQUENCY_STEP) / TIMESTEPS
        sigmas = torch.cat([sigmas[sigmas * TIMESTEPS > HIGH_FREQUENCY_FROM], tail])
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def refinement_sigmas(num_steps: int, start: float, shift: float = 12.0) -> Tensor:
    """The end of a render's sigmas, from a noise level that need not be one of them; the final 0 included.

    Args:
        num_steps: of the whole schedule.
        start: the first noise level, above 0 and at most 1.
        shift: 12 for the released model.
    """
    sigmas = inference_sigmas(num_steps, shift)
    return torch.cat([sigmas.new_tensor([start]), sigmas[sigmas < start]])


def timesteps(sigmas: Tensor) -> Tensor:
    """Model timesteps of the steps of a schedule: 1000 sigma, without the final 0."""
    return sigmas[:-1] * TIMESTEPS


def _even_grid(num_steps: int) -> Tensor:
    return torch.linspace(1, LOWEST_RAW_SIGMA, num_steps, dtype=torch.float32)


def _distilled_grid(num_steps: int) -> Tensor:
    grid = torch.arange(DISTILLED_GRID, 0, -1, dtype=torch.float32) / DISTILLED_GRID
    # Integer arithmetic: the floor of an even spacing must not depend on rounding.
    return grid[torch.arange(num_steps) * DISTILLED_GRID // num_steps]
