"""Learning-rate schedules: each a pure function of the step's number, so that there is nothing to save.

Sees optimizers by torch's interface; knows no config.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

ScheduleName = Literal[
    "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial", "rex"
]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The course of the learning rate.

    Attributes:
        name: which curve.
        warmup_steps: W; the n-th step (from 1) is made at n / W of the rate until it is full at step W.
            Unused by constant.
        total_steps: T, of the whole run; the rate falls from the later of steps 1 and W to step T. Needed by
            all but the constant ones.
        end_share: what the rate has fallen to at step T, as a share of the full one.
        num_cycles: how often cosine_with_restarts falls.
        power: of polynomial.
    """

    name: ScheduleName
    warmup_steps: int = 0
    total_steps: int | None = None
    end_share: float = 0.0
    num_cycles: int = 1
    power: float = 1.0

    def factor(self, step: int) -> float:
        """Give the share of the full rate that a step is made with.

        Args:
            step: from 1. After the last step the rate stays where it ended.
        """
        if self.name == "constant":
            return 1.0
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.name == "constant_with_warmup":
            return 1.0
        return self.end_share + (1 - self.end_share) * self._curve()(self._progress(step))

    def _progress(self, step: int) -> float:
        """How much of the fall is behind, 0 to 1."""
        assert self.total_steps is not None
        full = max(1, self.warmup_steps)
        return min(1.0, (step - full) / max(1, self.total_steps - full))

    def _curve(self) -> Callable[[float], float]:
        """From 1 at progress 0 to 0 at progress 1."""
        match self.name:
            case "cosine":
                return _cosine
            case "cosine_with_restarts":
                return self._restarting_cosine
            case "polynomial":
                return lambda progress: (1 - progress) ** self.power
            case "rex":
                return _rex
            case _:
                return lambda progress: 1 - progress

    def _restarting_cosine(self, progress: float) -> float:
        """Loshchilov & Hutter 2017 (arXiv 1608.03983), with cycles of one length."""
        return 0.0 if progress == 1 else _cosine(self.num_cycles * progress % 1)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _rex(progress: float) -> float:
    """Chen et al. 2021, REX (arXiv 2107.04197), section 3: falls late, between linear and constant."""
    return (1 - progress) / (1 / 2 + (1 - progress) / 2)


class AppliedSchedule:
    """A schedule that drives an optimizer; nothing of it is saved.

    Not torch's LambdaLR, which wraps the optimizer's step to warn of one that was left out: a step that is
    skipped for lack of memory is.

    Args:
        schedule: the course.
        optimizer: its current rates, one for each group, are the full ones.
        completed_steps: where a resumed run goes on.
    """

    def __init__(self, schedule: Schedule, optimizer: Optimizer, *, completed_steps: int = 0) -> None:
        self._schedule = schedule
        self._optimizer = optimizer
        self._full = [group["lr"] for group in optimizer.param_groups]
        self._completed = completed_steps
        self._set()

    def step(self) -> None:
        """Set the rates of the next step, once after every step."""
        self._completed += 1
        self._set()

    def _set(self) -> None:
        factor = self._schedule.factor(self._completed + 1)
        # Looked up each time: loading a state replaces the groups.
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * factor
