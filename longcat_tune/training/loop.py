"""The training loop: step groups in, optimizer steps out, everything else through functions it is given.

Knows no LongCat name, file format or config; this is accelerate's door together with `runs`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from longcat_tune.errors import InterruptedRunError, UserError
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState, StepGroup
from longcat_tune.training.metrics import StepMetrics, peak_memory_gib
from longcat_tune.training.step import (
    DrawSigma,
    StepOutput,
    draw,
    noise_generator,
    seed_dropout,
    to_device,
    training_step,
)
from longcat_tune.training.trouble import (
    StopRequest,
    explained_out_of_memory,
    require_finite,
    stop_on_signals,
)
from longcat_tune.types import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What a step is made with.

    Attributes:
        model: on the accelerator's device; only the optimizer's parameters need gradients.
        optimizer: over the trained parameters.
        schedule: stepped once per optimizer step.
        accelerator: gives the device, runs backward and clips.
        draw_sigma: the training density of noise levels.
        compute: entered for every forward pass, such as autocast.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    accelerator: Accelerator
    draw_sigma: DrawSigma
    compute: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def parameters(self) -> list[Tensor]:
        """The trained ones."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def run_loop(
    parts: LoopParts,
    groups: Iterable[StepGroup],
    *,
    settings: LoopSettings,
    hooks: LoopHooks,
    start: LoopState | None = None,
) -> LoopState:
    """Train until max_steps, or until the groups end.

    Args:
        parts: what a step is made with.
        groups: from the start's cursor on; may be endless.
        settings: how long, how often and how far.
        hooks: saving, rendering, logging.
        start: what a checkpoint gave; None for a new run.

    Returns:
        The state after the last step, which has been saved.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM came; the state was saved unless it was the second Ctrl-C.
        DataError: a loss or gradient is not finite.
        DeviceError: out of memory.
    """
    with stop_on_signals() as stop:
        run = _Run(start or LoopState(), settings, hooks, stop)
        if settings.validate_first and run.state.step == 0:
            run.validate()
        for group in islice(groups, max(0, settings.max_steps - run.state.step)):
            if run.epochs_due(group):
                run.validate()
            if stop.requested:
                break
            run.after_step(_train_step(parts, group, run.state.step + 1, settings), group)
        run.save()
        if settings.validate_last:
            run.validate()
    if stop.requested and run.state.step < settings.max_steps:
        step = run.state.step
        where = f"after step {step}, which is saved" if step else "before the first step"
        raise InterruptedRunError(f"stopped {where}; the same command goes on from there")
    return run.state


class _Run:
    """What has been reached, saved and rendered so far."""

    def __init__(self, state: LoopState, settings: LoopSettings, hooks: LoopHooks, stop: StopRequest) -> None:
        self.state = state
        self.settings = settings
        self.hooks = hooks
        self.stop = stop
        self.saved_step = state.step
        self.validated_step: int | None = None

    def after_step(self, metrics: StepMetrics, group: StepGroup) -> None:
        """Count the step, then save and render if it is time; saving first, as a render may fail."""
        self.state = LoopState(metrics.step, group.epoch, group.cursor)
        self.hooks.on_step(metrics)
        if self.state.step % self.settings.save_every == 0:
            self.save()
        if self.settings.validate_every and self.state.step % self.settings.validate_every == 0:
            self.validate()

    def epochs_due(self, group: StepGroup) -> bool:
        """Whether the step before this group ended an epoch to render after."""
        every = self.settings.validate_every_epochs
        return every is not None and group.epoch != self.state.epoch and group.epoch % every == 0

    def save(self) -> None:
        """Write a checkpoint unless this step has one."""
        if self.saved_step != self.state.step:
            self.hooks.save(self.state)
            self.saved_step = self.state.step

    def validate(self) -> None:
        """Render unless this step was rendered or the run is to stop; a failed render costs no steps."""
        if self.stop.requested or self.validated_step == self.state.step:
            return
        self.validated_step = self.state.step
        try:
            with self.stop.abandoning():
                self.hooks.validate(self.state.step)
        except KeyboardInterrupt:
            logger.info("the render at step %d was broken off", self.state.step)
        except UserError:
            if not self.stop.requested:
                self.save()
            raise


def _train_step(parts: LoopParts, group: StepGroup, number: int, settings: LoopSettings) -> StepMetrics:
    """Make one optimizer step: the mean over the micro batches, each a mean over its samples."""
    began = time.perf_counter()
    parts.model.train()
    outputs: list[StepOutput] = []
    clip_ids: list[str] = []
    with explained_out_of_memory(f"training step {number}"):
        for micro_batch, batch in enumerate(group.batches):
            output = _forward(parts, batch, seed=settings.seed, step=number, micro_batch=micro_batch)
            parts.accelerator.backward(output.loss_B.mean() / len(group.batches))
            outputs.append(StepOutput(output.loss_B.detach(), output.sigma_B))
            clip_ids += batch.clip_ids
        grad_norm = _clip(parts, settings)
        # All values are read before the optimizer's kernels are queued, so that these are not waited for.
        losses = torch.cat([output.loss_B for output in outputs]).tolist()
        require_finite(number, losses, grad_norm.item(), clip_ids)
        loss = torch.stack([output.loss_B.mean() for output in outputs]).mean().item()
        sigma_mean = torch.cat([output.sigma_B for output in outputs]).mean().item()
        learning_rate = float(parts.optimizer.param_groups[0]["lr"])
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
    parts.schedule.step()
    return StepMetrics(
        step=number,
        epoch=group.epoch,
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm.item(),
        sigma_mean=sigma_mean,
        samples=len(clip_ids),
        seconds=time.perf_counter() - began,
        memory_gib=peak_memory_gib(parts.accelerator.device),
    )


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
        )


def _clip(parts: LoopParts, settings: LoopSettings) -> Tensor:
    """Clip the gradients; returns their common norm as it was before."""
    limit = settings.max_grad_norm or float("inf")
    if settings.grad_clip_method == "norm":
        norm: Tensor = parts.accelerator.clip_grad_norm_(parts.parameters, limit)
        return norm
    gradients = [parameter.grad for parameter in parts.parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    parts.accelerator.clip_grad_value_(parts.parameters, limit)
    return norm
