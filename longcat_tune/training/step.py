"""One training step as a formula, and the random numbers it uses; knows no LongCat class or optimizer.

Randomness is stateless: every draw comes from a hash of the run's seed and the step's number. A resumed run
therefore repeats to the bit without saved generator states, and what happens between two steps (a render, an
evaluation) changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from longcat_tune.flow.loss import flow_loss
from longcat_tune.flow.noising import add_noise, standard_noise
from longcat_tune.types import Batch

DrawSigma = Callable[[int, Generator], Tensor]
"""Gives that many noise levels, float32 on the generator's device."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one micro batch gave.

    Attributes:
        loss_B: float32, per sample, with its graph, before any weighting by noise level.
        sigma_B: the noise level each sample was trained at.
    """

    loss_B: Tensor
    sigma_B: Tensor


def training_step(
    model: Callable[..., Tensor],
    batch: Batch,
    *,
    sigma_B: Tensor,
    noise_BCTHW: Tensor,
    huber_c: float | None = None,
    as_base: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StepOutput:
    """Noise the latents, predict clean - noise, compare; for regularisation data with what the base predicts.

    That target pulls nowhere until training has moved the model, and then back.

    Args:
        model: called as `model(latents, timestep, text, mask, num_cond_latents=k)`.
        batch: clean latents in float32, on the model's device.
        sigma_B: noise levels, 0 to 1.
        noise_BCTHW: standard normal, float32.
        huber_c: as `flow_loss`.
        as_base: within it the model is what it was before training.
    """
    k = batch.num_cond_latents
    noised = add_noise(batch.latents_BCTHW, noise_BCTHW, sigma_B, num_cond_latents=k)

    def predicted() -> Tensor:
        return model(
            noised.latents_BCTHW, noised.timestep_BT, batch.text_BLD, batch.mask_BL, num_cond_latents=k
        )

    target_BCTHW = noised.target_BCTHW
    if batch.keeps_base:
        with torch.no_grad(), as_base():
            target_BCTHW = predicted()
    loss_B = flow_loss(predicted(), target_BCTHW, num_cond_latents=k, huber_c=huber_c)
    return StepOutput(loss_B, noised.sigma_B)


def stable_seed(*parts: int | str) -> int:
    """Hash numbers and names to a seed of 63 bits, the same on every machine and in every Python."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def noise_generator(seed: int, *, step: int, micro_batch: int) -> Generator:
    """Give the CPU generator that one micro batch's sigma and noise are drawn from, in that order.

    Args:
        seed: the run's.
        step: number of the optimizer step, from 1.
        micro_batch: number within the step, counted over all processes, so that several processes draw what
            one process with accumulation draws.
    """
    return Generator().manual_seed(stable_seed(seed, "noise", step, micro_batch))


def seed_dropout(seed: int, *, step: int, micro_batch: int) -> None:
    """Set torch's global generator for one micro batch: the only one that dropout layers can draw from.

    Set anew each time, so that a run needs no saved generator states to resume to the bit and a render in
    between changes nothing. Gradient checkpointing restores it for its second forward by itself.
    """
    torch.manual_seed(stable_seed(seed, "dropout", step, micro_batch))


def draw(batch: Batch, draw_sigma: DrawSigma, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw sigma_B and noise_BCTHW on the CPU in float32, so that every device trains on the same numbers."""
    sigma_B = draw_sigma(len(batch.latents_BCTHW), generator)
    return sigma_B, standard_noise(tuple(batch.latents_BCTHW.shape), generator)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; its cached bf16 latents become float32, in which they are noised and compared."""
    # On MPS, through a bug of torch, a copy not waited for may read memory that was given up meanwhile.
    beside = device.type == "cuda"
    return replace(
        batch,
        latents_BCTHW=batch.latents_BCTHW.to(device, non_blocking=beside).float(),
        text_BLD=batch.text_BLD.to(device, non_blocking=beside),
        mask_BL=batch.mask_BL.to(device, non_blocking=beside),
    )
