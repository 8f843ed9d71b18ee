"""How long a run is: batches become phases, epochs and steps. Pure arithmetic over counts of clips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from longcat_tune.config.training import TrainingSection
from longcat_tune.data.epochs import DatasetBatches, EpochPlan, Phase
from longcat_tune.errors import UserError
from longcat_tune.runs.problems import collected


@dataclass(frozen=True, slots=True)
class RunSteps:
    """The length of a run.

    Attributes:
        phases: stretches of steps that use the same datasets; empty when they cannot be told.
        max_steps: of the run; None when its length was not given.
        errors: why there are no phases, or not enough of them.
    """

    phases: tuple[Phase, ...]
    max_steps: int | None
    errors: tuple[UserError, ...]


def launched_processes() -> int:
    """How many processes a launcher started to train as one; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_steps(datasets: Sequence[DatasetBatches], training: TrainingSection, *, processes: int) -> RunSteps:
    """Count the steps of a run.

    Args:
        datasets: those trained on, in the plan's order.
        training: the section; max_train_steps wins over num_train_epochs.
        processes: that share the batches.
    """
    errors: list[UserError] = []
    phases: tuple[Phase, ...] = ()
    max_steps = training.max_train_steps
    with collected(errors):
        epochs = EpochPlan(datasets, training.gradient_accumulation_steps, processes)
        phases = epochs.phases
        if max_steps is not None:
            epochs.require_steps(max_steps)
        elif training.num_train_epochs is not None:
            max_steps = epochs.steps_in(training.num_train_epochs)
    return RunSteps(phases, max_steps, tuple(errors))
