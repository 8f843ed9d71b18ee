"""What the loop is told and what it calls: settings, state, and the functions that `runs` plugs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from longcat_tune.training.metrics import EventName, StepMetrics
from longcat_tune.types import Batch, BestEvaluation

Abandoning = Callable[[], AbstractContextManager[None]]
"""Makes a block that a signal may break off."""


class StepGroup(Protocol):
    """The micro batches of one optimizer step."""

    @property
    def batches(self) -> Sequence[Batch]:
        """One after the other; their gradients are averaged. As many in each process of a run."""

    @property
    def epoch(self) -> int:
        """The epoch it belongs to, from 0."""

    @property
    def cursor(self) -> tuple[int, ...]:
        """Where the sampler goes on after it."""


class Weights(Protocol):
    """Which weights are stepped and which leave the run, where an optimizer has two sets of them."""

    def shipped(self) -> AbstractContextManager[None]:
        """Put those in place that are saved and rendered; within the block nothing is stepped."""

    def take_up(self) -> None:
        """Put those in place that are stepped, once before the first step."""


class SameWeights:
    """For most optimizers: what is stepped is what is saved."""

    def shipped(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def take_up(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class LoopState:
    """How far a run has come; with weights and optimizer, all that a checkpoint needs.

    Attributes:
        step: completed optimizer steps; a step that was skipped counts, as its batches are behind too.
        epoch: of the last one.
        cursor: the sampler's, for the next one; empty for a new run.
        best: of the evaluations so far; None: there were none.
    """

    step: int = 0
    epoch: int = 0
    cursor: tuple[int, ...] = ()
    best: BestEvaluation | None = None


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
        evaluate_every: steps between evaluations on held-out clips; None: only at the start and the end.
        bands_every: steps that one event of losses by noise level sums up.
    """

    max_steps: int
    seed: int
    max_grad_norm: float = 1.0
    grad_clip_method: Literal["norm", "value"] = "norm"
    save_every: int = 500
    validate_every: int | None = None
    validate_every_epochs: int | None = None
    validate_first: bool = False
    evaluate_every: int | None = None
    bands_every: int = 50

    @property
    def validate_last(self) -> bool:
        """Whether to render after the last step: whenever anything is rendered at all."""
        return bool(self.validate_first or self.validate_every or self.validate_every_epochs)


def _unheard(_name: EventName, _fields: Mapping[str, Any]) -> None:
    """Let an event pass."""


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """What the loop calls and does not know; in a run of several processes only the first one calls them.

    Attributes:
        save: writes a checkpoint.
        validate: renders at a step; 0 is what the run starts from. Within what it is given to enter, a
            signal breaks it off with KeyboardInterrupt, which it lets pass.
        on_step: shows and logs one step.
        on_event: logs what else happens, as EventLog.write: `step_skipped`, `sigma_bands` and `evaluation`.
    """

    save: Callable[[LoopState], None]
    validate: Callable[[int, Abandoning], None]
    on_step: Callable[[StepMetrics], None]
    on_event: Callable[[EventName, Mapping[str, Any]], None] = _unheard
