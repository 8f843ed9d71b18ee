"""What the loop is told and what it calls: settings, state, and the functions that `runs` plugs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from longcat_tune.training.metrics import StepMetrics
from longcat_tune.types import Batch


class StepGroup(Protocol):
    """The micro batches of one optimizer step."""

    @property
    def batches(self) -> Sequence[Batch]:
        """One after the other; their gradients are averaged."""

    @property
    def epoch(self) -> int:
        """The epoch it belongs to, from 0."""

    @property
    def cursor(self) -> tuple[int, ...]:
        """Where the sampler goes on after it."""


@dataclass(frozen=True, slots=True)
class LoopState:
    """How far a run has come; with weights and optimizer, all that a checkpoint needs.

    Attributes:
        step: completed optimizer steps.
        epoch: of the last one.
        cursor: the sampler's, for the next one; empty for a new run.
    """

    step: int = 0
    epoch: int = 0
    cursor: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long, how often and how far.

    Attributes:
        max_steps: optimizer steps of the whole run, those before a resume included.
        seed: of noise, sigma and dropout.
        max_grad_norm: gradients are clipped to it; 0 leaves them as they are.
        grad_clip_method: their common norm, or each value by itself.
        save_every: steps between checkpoints; the last step is always saved.
        validate_every: steps between renders; None: not by steps.
        validate_every_epochs: epochs between renders; None: not by epochs.
        validate_first: render before the first step too.
    """

    max_steps: int
    seed: int
    max_grad_norm: float = 1.0
    grad_clip_method: Literal["norm", "value"] = "norm"
    save_every: int = 500
    validate_every: int | None = None
    validate_every_epochs: int | None = None
    validate_first: bool = False

    @property
    def validate_last(self) -> bool:
        """Whether to render after the last step: whenever anything is rendered at all."""
        return bool(self.validate_first or self.validate_every or self.validate_every_epochs)


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """What the loop calls and does not know.

    Attributes:
        save: writes a checkpoint.
        validate: renders at a step; 0 is the untouched base model. A signal breaks it off with
            KeyboardInterrupt.
        on_step: shows and logs one step.
    """

    save: Callable[[LoopState], None]
    validate: Callable[[int], None]
    on_step: Callable[[StepMetrics], None]
