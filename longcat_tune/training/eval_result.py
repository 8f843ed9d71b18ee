"""What an evaluation gave: losses of single clips taken together, and the record of all evaluations so far.

Only numbers: how they are measured stands in evaluation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from longcat_tune.types import BestEvaluation

TASKS = ("t2v", "i2v", "continuation")
"""By the number of given latent frames: none, one, more."""


@dataclass(frozen=True, slots=True)
class ClipLosses:
    """What was measured on one clip for one task.

    Attributes:
        clip_id: which.
        num_cond_latents: given latent frames, which have no loss.
        losses: one per noise level: mean squared error over the noised frames.
    """

    clip_id: str
    num_cond_latents: int
    losses: tuple[float, ...]

    @property
    def task(self) -> str:
        """One of TASKS."""
        return TASKS[min(self.num_cond_latents, len(TASKS) - 1)]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The loss on held-out clips with one state of the weights.

    Attributes:
        loss: mean over all clips, tasks and noise levels, each counted alike.
        sigmas: noise levels, rising.
        losses: means by noise level.
        by_task: means by task, for those that were measured.
        losses_by_task: the same apart by noise level, as `losses` is.
        clips: how many there are; one that is measured for two tasks counts once.
        identity: what was measured; two results can be compared when theirs are the same.
    """

    loss: float
    sigmas: tuple[float, ...]
    losses: tuple[float, ...]
    by_task: dict[str, float]
    losses_by_task: dict[str, tuple[float, ...]]
    clips: int
    identity: str

    @classmethod
    def of(cls, measured: Iterable[ClipLosses], *, sigmas: tuple[float, ...], identity: str) -> EvalResult:
        """Take together what all processes measured; who measured what makes no difference.

        Args:
            measured: at least one.
            sigmas: noise levels that it was measured at.
            identity: what it was measured on.
        """
        rows = list(measured)
        by_task = {task: [row.losses for row in rows if row.task == task] for task in TASKS}
        measured_tasks = {task: losses for task, losses in by_task.items() if losses}
        return cls(
            loss=_mean(loss for row in rows for loss in row.losses),
            sigmas=sigmas,
            losses=_by_level(row.losses for row in rows),
            by_task={task: _mean(chain.from_iterable(losses)) for task, losses in measured_tasks.items()},
            losses_by_task={task: _by_level(losses) for task, losses in measured_tasks.items()},
            clips=len({row.clip_id for row in rows}),
            identity=identity,
        )

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "loss": self.loss,
            "sigmas": list(self.sigmas),
            "losses": list(self.losses),
            "by_task": dict(self.by_task),
            "losses_by_task": {task: list(losses) for task, losses in self.losses_by_task.items()},
            "clips": self.clips,
            "identity": self.identity,
        }


def best_of(best: BestEvaluation | None, result: EvalResult, step: int) -> BestEvaluation:
    """Take an evaluation into the record; one of other clips or noise levels begins a new one.

    Args:
        best: the record so far.
        result: of this evaluation.
        step: that it was made after.
    """
    if best is None or best.identity != result.identity:
        base_loss = result.loss if step == 0 else None
        return BestEvaluation(step, result.loss, base_loss, last_step=step, identity=result.identity)
    if result.loss < best.loss:
        best = replace(best, step=step, loss=result.loss)
    return replace(best, last_step=step)


def described(result: EvalResult, step: int, best: BestEvaluation) -> str:
    """One line for the console.

    Args:
        result: of this evaluation.
        step: that it was made after.
        best: the record with it.
    """
    told = f"evaluation at step {step}: loss {result.loss:.4f}"
    if step == 0:
        return f"{told} (the base)"
    base = "" if best.base_loss is None else f"base {best.base_loss:.4f}, "
    place = "the best so far" if best.step == step else f"best {best.loss:.4f} at {best.step}"
    return f"{told} ({base}{place})"


def _by_level(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(_mean(column) for column in zip(*rows, strict=True))


def _mean(values: Iterable[float]) -> float:
    """The mean, rounded once, so that it does not depend on the order."""
    listed = list(values)
    return math.fsum(listed) / len(listed)
