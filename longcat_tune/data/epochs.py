"""How many batches and steps an epoch has, and which datasets are in it: integers alone.

Knows no clip, no file and no order; a dataset is a number of batches and the steps that it is used in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from longcat_tune.errors import DataError


class Cursor(NamedTuple):
    """A place in the endless order of batches: the first batch that was not used yet.

    Attributes:
        epoch: from 0.
        batch: from 0, counted within the epoch and this process.
    """

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True)
class DatasetBatches:
    """What the arithmetic needs to know of one dataset.

    Attributes:
        batches: of one pass over it, repeats included; 0 is allowed and never used.
        probability: share of them that an epoch takes, above 0 and at most 1.
        start_step: first optimizer step that uses it, counted from 1; 0 means from the beginning too.
        end_step: last one; None: to the end.
    """

    batches: int
    probability: float = 1.0
    start_step: int = 0
    end_step: int | None = None

    @property
    def per_epoch(self) -> int:
        """Batches that an epoch takes, at least one; halves are rounded up, so that two make the whole."""
        return min(self.batches, max(1, math.floor(self.probability * self.batches + 0.5)))

    def is_active(self, step: int) -> bool:
        """Whether this step may use it."""
        begun = self.batches > 0 and self.start_step <= step
        return begun and (self.end_step is None or step <= self.end_step)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps that use the same datasets.

    Attributes:
        first_step: counted from 1.
        last_step: None: endless.
        active: indices of its datasets.
        steps_per_epoch: of a whole epoch; the last one of the phase may be cut short.
        batches_per_epoch: that each process takes in a whole epoch.
        first_epoch: the one that begins with it.
    """

    first_step: int
    last_step: int | None
    active: tuple[int, ...]
    steps_per_epoch: int
    batches_per_epoch: int
    first_epoch: int

    @property
    def num_epochs(self) -> int | None:
        """How many begin in it; None: endless."""
        if self.last_step is None:
            return None
        return math.ceil((self.last_step - self.first_step + 1) / self.steps_per_epoch)


@dataclass(frozen=True, slots=True)
class EpochPlace:
    """What an epoch is.

    Attributes:
        phase: the stretch of steps that it lies in.
        index: its number within the phase, from 0.
        first_step: counted from 1.
        steps: that it takes; 0 for one that would begin after the last step of all.
        batches: that each process takes.
    """

    phase: Phase
    index: int
    first_step: int
    steps: int
    batches: int


class EpochPlan:
    """Epochs of several datasets that begin and end at their own steps.

    An epoch takes each active dataset's share of batches once. Where the set of active datasets changes, the
    epoch is cut short and a new one begins.

    Attributes:
        datasets: in a fixed order.
        accumulation: batches per optimizer step and process.
        world_size: number of processes; all take the same number of batches.
        phases: all stretches of steps, without gaps, from step 1 on.

    Raises:
        DataError: no dataset is used at step 1, or between two that are.
    """

    def __init__(self, datasets: Sequence[DatasetBatches], accumulation: int, world_size: int = 1) -> None:
        self.datasets = tuple(datasets)
        self.accumulation = accumulation
        self.world_size = world_size
        phases: list[Phase] = []
        for first_step, last_step in self._stretches():
            first_epoch = sum(phase.num_epochs or 0 for phase in phases)
            phases.append(self._phase(first_step, last_step, first_epoch))
        self.phases = tuple(phases)

    @property
    def num_epochs(self) -> int | None:
        """How many there are; None: endless."""
        last = self.phases[-1]
        return None if last.num_epochs is None else last.first_epoch + last.num_epochs

    def first_epoch(self, dataset: int) -> int:
        """The first epoch that uses the dataset of this index; its epochs follow one another."""
        return next(phase.first_epoch for phase in self.phases if dataset in phase.active)

    def locate(self, epoch: int) -> EpochPlace:
        """Find what the epoch of this number, from 0, consists of."""
        phase = next(phase for phase in reversed(self.phases) if phase.first_epoch <= epoch)
        index = epoch - phase.first_epoch
        first_step = phase.first_step + index * phase.steps_per_epoch
        steps = phase.steps_per_epoch
        if phase.last_step is not None:
            steps = max(0, min(steps, phase.last_step - first_step + 1))
        batches = min(phase.batches_per_epoch, steps * self.accumulation)
        return EpochPlace(phase, index, first_step, steps, batches)

    def cursor_at(self, step: int) -> Cursor:
        """Where a run stands that has completed so many steps."""
        if self.num_epochs is not None and step >= self.steps_in(self.num_epochs):
            return Cursor(self.num_epochs, 0)
        phase = next(phase for phase in reversed(self.phases) if phase.first_step <= step + 1)
        index, steps = divmod(step + 1 - phase.first_step, phase.steps_per_epoch)
        return Cursor(phase.first_epoch + index, steps * self.accumulation)

    def steps_in(self, num_epochs: int) -> int:
        """Steps of the first so many epochs, at least 1.

        Raises:
            DataError: every dataset has ended before.
        """
        if self.num_epochs is not None and num_epochs > self.num_epochs:
            raise DataError(self._too_long("num_train_epochs", num_epochs))
        last = self.locate(num_epochs - 1)
        return last.first_step + last.steps - 1

    def require_steps(self, max_steps: int) -> None:
        """Make sure that there is something to train on until the last step.

        Raises:
            DataError: every dataset has ended before.
        """
        last = self.phases[-1].last_step
        if last is not None and max_steps > last:
            raise DataError(self._too_long("max_train_steps", max_steps))

    def _stretches(self) -> Iterator[tuple[int, int | None]]:
        """First and last steps between which no dataset begins or ends."""
        used = [one for one in self.datasets if one.batches]
        starts = {1, *(max(1, one.start_step) for one in used)}
        bounds = sorted(starts | {one.end_step + 1 for one in used if one.end_step is not None})
        yield from ((first, following - 1) for first, following in pairwise(bounds))
        if not used or any(one.end_step is None for one in used):
            yield bounds[-1], None

    def _phase(self, first: int, last: int | None, first_epoch: int) -> Phase:
        active = tuple(number for number, one in enumerate(self.datasets) if one.is_active(first))
        if not active:
            raise DataError(_gap(first, last))
        batches = math.ceil(sum(self.datasets[number].per_epoch for number in active) / self.world_size)
        return Phase(first, last, active, math.ceil(batches / self.accumulation), batches, first_epoch)

    def _too_long(self, key: str, value: int) -> str:
        return (
            f"{key} ({value}) is more than the datasets give: their last end_step is "
            f"{self.phases[-1].last_step} (epochs: {self.num_epochs}); raise or remove it, or lower {key}"
        )


def shared_out(batches: int, shares: Sequence[float], *, turn: float) -> list[int]:
    """Divide batches by shares, each rounded up or down; where turns are spread evenly, so is the rounding.

    The shares lie side by side on a line as long as the batches are many. Moved by the turn, each gets the
    whole numbers that fall on it.

    Args:
        batches: to divide.
        shares: they add up to 1.
        turn: 0 up to, but not including, 1.
    """
    ends = [math.floor(batches * end + turn) for end in accumulate(shares[:-1])]
    return [end - begin for begin, end in pairwise([0, *ends, batches])]


def _gap(first: int, last: int | None) -> str:
    """Say that no dataset is used between two steps."""
    if last is None:
        return "there are 0 batches to train on and every step needs one; add clips to a dataset"
    steps = f"step {first} uses" if first == last else f"steps {first} to {last} use"
    begins = f"the next begins with start_step {last + 1}"
    lower = f"lower that start_step to {first}"
    if first == 1:
        return f"{steps} no dataset, and every step needs one: {begins}; {lower}"
    return (
        f"{steps} no dataset, and every step needs one: the last one before ends with end_step {first - 1} "
        f"and {begins}; raise that end_step to {last} or {lower}"
    )
