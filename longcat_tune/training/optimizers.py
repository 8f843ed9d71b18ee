"""Optimizers and learning-rate schedules; sees parameters and numbers, never a model or a config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

ScheduleName = Literal["constant", "constant_with_warmup"]


def build_adamw(
    parameters: Iterable[Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> AdamW:
    """Build AdamW, in one fused kernel on CUDA.

    Args:
        parameters: the trained ones, on the device they stay on.
        learning_rate: before the schedule.
        betas: decay of the two running means.
        eps: added to the denominator.
        weight_decay: decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101).
    """
    trained = list(parameters)
    fused = all(parameter.is_cuda for parameter in trained)
    return AdamW(trained, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def build_schedule(
    name: ScheduleName, optimizer: Optimizer, *, warmup_steps: int, completed_steps: int = 0
) -> LambdaLR:
    """Build a schedule whose rate depends on the step's number alone, so that it has nothing to save.

    With W warmup steps the n-th step (from 1) is made at rate * min(1, n / W) by constant_with_warmup, and at
    rate by constant.

    Args:
        name: which.
        optimizer: its current rate is the full one.
        warmup_steps: W; unused by constant.
        completed_steps: where a resumed run goes on.
    """
    ramp = warmup_steps if name == "constant_with_warmup" else 0

    def factor(completed: int) -> float:
        return min(1.0, (completed + 1) / ramp) if ramp else 1.0

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    # LambdaLR takes one step when it is built, hence the -1.
    return LambdaLR(optimizer, factor, last_epoch=completed_steps - 1)
