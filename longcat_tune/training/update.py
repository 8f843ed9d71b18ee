"""One optimizer step of all processes: forward and backward over the micro batches, clip, update.

Decides what a step does and when it must not be done; when to save, to render and to stop is the loop's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from longcat_tune.training.interfaces import LoopSettings, StepGroup
from longcat_tune.training.metrics import StepMetrics
from longcat_tune.training.optimizers import rate_of_step
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.process_memory import peak_memory_gib
from longcat_tune.training.step import (
    StepOutput,
    draw,
    noise_generator,
    seed_dropout,
    to_device,
    training_step,
)
from longcat_tune.training.trouble import (
    explained_out_of_memory,
    free_memory,
    out_of_memory,
    out_of_memory_reason,
    require_finite,
)
from longcat_tune.types import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pass:
    """What forward and backward over one micro batch gave.

    Attributes:
        objective: what is minimised: the weighted mean over its samples.
        losses: unweighted, one per sample.
        sigmas: one per sample.
        keeps_base: as in Batch.
    """

    objective: float
    losses: tuple[float, ...]
    sigmas: tuple[float, ...]
    keeps_base: bool


@dataclass(frozen=True, slots=True)
class Share:
    """What one process found out in its part of a step, before anything was changed.

    Attributes:
        clip_ids: one per sample.
        passes: one per micro batch.
        full: why its memory did not suffice; there are no passes then.
    """

    clip_ids: tuple[str, ...]
    passes: tuple[Pass, ...] = ()
    full: str | None = None


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A step that was made.

    Attributes:
        metrics: for the log.
        losses: unweighted, one per sample of all processes, but for regularisation data, whose losses tell
            how far the model has moved and not how well it draws.
        sigmas: one per loss.
    """

    metrics: StepMetrics
    losses: tuple[float, ...]
    sigmas: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SkippedStep:
    """A step that did not fit into memory and changed nothing but the schedule.

    Attributes:
        step: its number.
        reason: torch's, in one line.
        clip_ids: of the processes that it did not fit into.
    """

    step: int
    reason: str
    clip_ids: tuple[str, ...]


def make_step(
    parts: LoopParts, group: StepGroup, number: int, settings: LoopSettings
) -> DoneStep | SkippedStep:
    """Make one optimizer step: the mean over all processes' micro batches, each a mean over its samples.

    Args:
        parts: what it is made with.
        group: this process's micro batches.
        number: of the step, from 1.
        settings: seed and clipping.

    Returns:
        A skipped step when the memory of any process did not suffice; then no process changed its weights.

    Raises:
        DataError: a loss or gradient is not finite; the weights are unchanged.
        DeviceError: no memory for the optimizer's state; or, where all keep step, for this process's part.
    """
    began = time.perf_counter()
    parts.model.train()
    shares = parts.processes.gather(_try_share(parts, group, number, settings))
    if any(share.full for share in shares):
        return _skipped(parts, number, shares)
    parts.processes.average_gradients(parts.parameters)
    grad_norm = _clip(parts, settings).item()
    passes = [one for share in shares for one in share.passes]
    learnt = [one for one in passes if not one.keeps_base]
    losses = tuple(chain.from_iterable(one.losses for one in passes))
    clip_ids = tuple(chain.from_iterable(share.clip_ids for share in shares))
    require_finite(number, losses, grad_norm, clip_ids)
    learning_rate = rate_of_step(parts.optimizer)
    with explained_out_of_memory(f"the optimizer's part of step {number}"):
        parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.schedule.step()
    if parts.ema is not None:
        parts.ema.update()
    metrics = StepMetrics(
        step=number,
        epoch=group.epoch,
        loss=_mean_objective(learnt),
        regularisation_loss=_mean_objective([one for one in passes if one.keeps_base]),
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        sigma_mean=torch.tensor([sigma for one in passes for sigma in one.sigmas]).mean().item(),
        samples=len(clip_ids),
        seconds=time.perf_counter() - began,
        memory_gib=peak_memory_gib(parts.accelerator.device),
    )
    return DoneStep(
        metrics,
        losses=tuple(chain.from_iterable(one.losses for one in learnt)),
        sigmas=tuple(chain.from_iterable(one.sigmas for one in learnt)),
    )


def _mean_objective(passes: Sequence[Pass]) -> float | None:
    return torch.tensor([one.objective for one in passes]).mean().item() if passes else None


def try_largest(parts: LoopParts, batch: Batch, settings: LoopSettings) -> None:
    """Run forward and backward over a batch and throw the gradients away: what fits it, fits the run.

    No weight and no random state is changed.

    Args:
        parts: as for the steps.
        batch: the largest of the run.
        settings: of the run.

    Raises:
        DeviceError: it does not fit.
    """
    device = parts.accelerator.device
    parts.model.train()
    clips = ", ".join(batch.clip_ids)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        explained_out_of_memory(f"a try of the largest batch of this run, {clips}"),
    ):
        output = _forward(parts, batch, seed=settings.seed, step=0, micro_batch=0)
        output.loss_B.mean().backward()
    parts.optimizer.zero_grad(set_to_none=True)
    logger.info("The largest batch of this run fits: peak %.1f GiB with %s", peak_memory_gib(device), clips)


def _try_share(parts: LoopParts, group: StepGroup, number: int, settings: LoopSettings) -> Share:
    """Do this process's part, or say that it does not fit; nothing of it stays in memory then."""
    try:
        return _share(parts, group, number, settings)
    except (RuntimeError, MemoryError) as error:
        reason = out_of_memory_reason(error)
        if reason is None:
            raise
        if parts.processes.lockstep:
            # The others wait for this one within the step: only its end lets the launcher end them.
            raise out_of_memory(f"step {number}", reason) from error
    return Share(clip_ids=_clip_ids(group), full=reason)


def _share(parts: LoopParts, group: StepGroup, number: int, settings: LoopSettings) -> Share:
    outputs: list[StepOutput] = []
    objectives: list[Tensor] = []
    processes = parts.processes
    for index, batch in enumerate(group.batches):
        # Counted over all processes, so that they draw what one with accumulation draws.
        micro_batch = index * processes.count + processes.rank
        output = _forward(parts, batch, seed=settings.seed, step=number, micro_batch=micro_batch)
        objective = (parts.weigh(output.sigma_B) * output.loss_B).mean()
        (objective / len(group.batches)).backward()
        outputs.append(StepOutput(output.loss_B.detach(), output.sigma_B))
        objectives.append(objective.detach())
        # Or they would keep this graph while the next one is made.
        del output, objective
    # Read when all are done, so that the device is waited for once.
    passes = tuple(
        Pass(
            objective.item(), tuple(output.loss_B.tolist()), tuple(output.sigma_B.tolist()), batch.keeps_base
        )
        for batch, output, objective in zip(group.batches, outputs, objectives, strict=True)
    )
    return Share(_clip_ids(group), passes)


def _skipped(parts: LoopParts, number: int, shares: list[Share]) -> SkippedStep:
    parts.optimizer.zero_grad(set_to_none=True)
    free_memory(parts.accelerator.device)
    parts.schedule.step()
    full = [share for share in shares if share.full]
    clip_ids = tuple(chain.from_iterable(share.clip_ids for share in full))
    return SkippedStep(number, full[0].full or "", clip_ids)


def _clip_ids(group: StepGroup) -> tuple[str, ...]:
    return tuple(chain.from_iterable(batch.clip_ids for batch in group.batches))


def _forward(parts: LoopParts, batch: Batch, *, seed: int, step: int, micro_batch: int) -> StepOutput:
    generator = noise_generator(seed, step=step, micro_batch=micro_batch)
    sigma_B, noise_BCTHW = draw(batch, parts.draw_sigma, generator)
    seed_dropout(seed, step=step, micro_batch=micro_batch)
    device = parts.accelerator.device
    with parts.compute():
        return training_step(
            parts.model,
            to_device(batch, device),
            sigma_B=sigma_B.to(device),
            noise_BCTHW=noise_BCTHW.to(device),
            huber_c=parts.huber_c,
            as_base=parts.as_base,
        )


def _clip(parts: LoopParts, settings: LoopSettings) -> Tensor:
    """Clip the gradients; returns their common norm as it was before."""
    limit = settings.max_grad_norm or float("inf")
    if settings.grad_clip_method == "norm":
        return torch.nn.utils.clip_grad_norm_(parts.parameters, limit)
    gradients = [parameter.grad for parameter in parts.parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grad_value_(parts.parameters, limit)
    return norm
