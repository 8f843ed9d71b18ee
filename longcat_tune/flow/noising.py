"""Clean latents and noise to the transformer's input and target; the one owner of the target's sign.

The official sampler negates the transformer's output and walks x <- x + (sigma_next - sigma) v. With
x = (1 - sigma) clean + sigma noise the exact velocity is noise - clean, so the raw output must be clean -
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.flow.schedule import TIMESTEPS
from longcat_tune.types import NoisedBatch


def mix(clean: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """The straight path between clean latents and noise: (1 - sigma) clean + sigma noise, per sample."""
    sigma = sigma_B.view(-1, *[1] * (clean.ndim - 1))
    return (1 - sigma) * clean + sigma * noise


def add_noise(
    latents_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor, *, num_cond_latents: int
) -> NoisedBatch:
    """Noise all frames but the leading condition frames, which stay clean at timestep 0.

    Args:
        latents_BCTHW: clean, normalised, float32.
        noise_BCTHW: standard normal, float32.
        sigma_B: one level per sample, 0 to 1.
        num_cond_latents: 0 text-to-video, 1 image-to-video, more for continuation.

    Returns:
        The model's input, its timesteps, and what its raw output must equal.
    """
    frames = latents_BCTHW.shape[2]
    noised = mix(latents_BCTHW, noise_BCTHW, sigma_B)
    noised[:, :, :num_cond_latents] = latents_BCTHW[:, :, :num_cond_latents]
    timestep_BT = (sigma_B * TIMESTEPS)[:, None].repeat(1, frames)
    timestep_BT[:, :num_cond_latents] = 0
    return NoisedBatch(noised, timestep_BT, latents_BCTHW - noise_BCTHW, sigma_B)


def clean_estimate(noised: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean latents that a prediction implies: x + sigma * prediction."""
    return noised + sigma_B.view(-1, *[1] * (noised.ndim - 1)) * prediction


def euler_step(latents: Tensor, prediction: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step of the sampler, from sigma down to sigma_next, in float32.

    Args:
        latents: at noise level sigma.
        prediction: the transformer's raw (or guided) output, clean - noise.
        sigma: scalar.
        sigma_next: scalar, smaller than sigma.
    """
    velocity = -prediction.float()
    return latents.float() + (sigma_next - sigma) * velocity


def standard_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Float32 noise drawn on the generator's device; on the CPU it is the same for every accelerator."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
