"""The training loop: step groups in, optimizer steps out, everything else through functions it is given.

Knows no LongCat name, file format or config. In a run of several processes each has a loop of its own; they
take the same steps and end at the same one, and only the first saves, renders and logs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice

from longcat_tune.errors import InterruptedRunError, UserError
from longcat_tune.training.evaluation import HeldOut
from longcat_tune.training.evaluator import Evaluator
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState, StepGroup
from longcat_tune.training.metrics import SigmaBands
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.trouble import StopRequest, out_of_memory, stop_on_signals
from longcat_tune.training.update import DoneStep, SkippedStep, make_step, try_largest
from longcat_tune.types import Batch

SKIPS_ALLOWED = 2
"""Steps in a row that may be skipped for lack of memory; one more ends the run."""

logger = logging.getLogger(__name__)


def run_loop(
    parts: LoopParts,
    groups: Iterable[StepGroup],
    *,
    settings: LoopSettings,
    hooks: LoopHooks,
    start: LoopState | None = None,
    largest: Batch | None = None,
    held_out: HeldOut | None = None,
) -> LoopState:
    """Train until max_steps, or until the groups end.

    A step that runs out of memory is skipped and counts as a step: its batches are behind, so that step and
    cursor keep their relation and a resumed run does what this one does. The third in a row ends the run; its
    last checkpoint stands before them, so that they are tried again.

    Args:
        parts: what a step is made with.
        groups: from the start's cursor on; may be endless.
        settings: how long, how often and how far.
        hooks: saving, rendering, logging.
        start: what a checkpoint gave; None for a new run.
        largest: the batch that needs most memory: tried before the first step, changing nothing.
        held_out: what the loss is measured on at the start of a new run, every so often, and at the end; in
            all processes or in none.

    Returns:
        The state after the last step, which has been saved.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM came; the state was saved unless it was the second Ctrl-C.
        DataError: a loss or gradient is not finite.
        DeviceError: out of memory in three steps in a row, or with the largest batch.
    """
    processes = parts.processes
    stopped = False
    with stop_on_signals() as stop:
        run = _Run(start or LoopState(), parts, settings, hooks, stop, held_out)
        parts.weights.take_up()
        if largest is not None and run.state.step < settings.max_steps:
            try_largest(parts, largest, settings)
        if run.state.step < settings.max_steps:
            run.evaluate_start()
        if settings.validate_first and run.state.step == 0:
            run.validate()
        for group in islice(groups, max(0, settings.max_steps - run.state.step)):
            if run.epochs_due(group):
                run.validate()
            # Agreed on, as a signal may reach one process a step before another.
            stopped = processes.agree(stop.requested)
            if stopped:
                break
            run.after_step(make_step(parts, group, run.state.step + 1, settings), group)
        if not stopped:
            run.evaluate()
        run.save()
        run.report_bands()
        if settings.validate_last:
            run.validate()
    if stopped:
        step = run.state.step
        where = f"after step {step}, which is saved" if step else "before the first step"
        raise InterruptedRunError(f"stopped {where}; the same command goes on from there")
    return run.state


class _Run:
    """What has been reached, saved and rendered so far."""

    def __init__(
        self,
        state: LoopState,
        parts: LoopParts,
        settings: LoopSettings,
        hooks: LoopHooks,
        stop: StopRequest,
        held_out: HeldOut | None,
    ) -> None:
        self.state = state
        self.weights = parts.weights
        self.is_first = parts.processes.is_first
        self.settings = settings
        self.hooks = hooks
        self.stop = stop
        self.evaluator = None if held_out is None else Evaluator(held_out, parts, hooks, stop, state)
        self.saved_step = state.step
        self.validated_step: int | None = None
        self.bands = SigmaBands()
        self.skipped: list[SkippedStep] = []
        self.before_skips = state

    def after_step(self, made: DoneStep | SkippedStep, group: StepGroup) -> None:
        """Count the step, then evaluate, save and render if it is time.

        Saving after the evaluation, whose result it holds, and before the render, which may fail.
        """
        self.state = LoopState(self.state.step + 1, group.epoch, group.cursor, self.state.best)
        if isinstance(made, SkippedStep):
            self._skip(made)
        else:
            self.skipped, self.before_skips = [], self.state
            self.bands.add(made.losses, made.sigmas)
            if self.is_first:
                self.hooks.on_step(made.metrics)
        if self.state.step % self.settings.bands_every == 0:
            self.report_bands()
        if self.evaluation_due:
            self.evaluate()
        if self.state.step % self.settings.save_every == 0:
            self.save()
        if self.settings.validate_every and self.state.step % self.settings.validate_every == 0:
            self.validate()

    def _skip(self, step: SkippedStep) -> None:
        """Tell of a skipped step, and end the run when there were too many in a row."""
        self.skipped.append(step)
        if self.is_first:
            self.hooks.on_event("step_skipped", asdict(step))
        if len(self.skipped) <= SKIPS_ALLOWED:
            logger.warning(
                "step %d is skipped, out of memory with %s: %s",
                step.step,
                ", ".join(step.clip_ids),
                step.reason,
            )
            return
        self.state = self.before_skips
        self.save()
        raise out_of_memory(f"steps {self.skipped[0].step} to {step.step}, one after another", step.reason)

    def report_bands(self) -> None:
        """Log the losses by noise level since the last time."""
        if self.bands and self.is_first:
            self.hooks.on_event("sigma_bands", {"step": self.state.step, **self.bands.take()})

    def epochs_due(self, group: StepGroup) -> bool:
        """Whether the step before this group ended an epoch to render after."""
        every = self.settings.validate_every_epochs
        return every is not None and group.epoch != self.state.epoch and group.epoch % every == 0

    def save(self, *, again: bool = False) -> None:
        """Write a checkpoint unless this step, or a later one, has one.

        Args:
            again: write it in any case, as its evaluation is news.
        """
        if self.saved_step >= self.state.step and not again:
            return
        if self.is_first:
            with self.weights.shipped():
                self.hooks.save(self.state)
        self.saved_step = self.state.step

    @property
    def evaluation_due(self) -> bool:
        """Whether this is a step to evaluate after."""
        every = self.settings.evaluate_every
        return every is not None and self.state.step % every == 0

    def evaluate_start(self) -> None:
        """Measure what the run starts from; one that goes on makes up for an evaluation broken off."""
        if self.evaluator is not None and (self.evaluation_due or not self.evaluator.goes_on):
            self.evaluate()

    def evaluate(self) -> None:
        """Measure the loss on held-out clips, if there are any; the best so far is saved at once.

        So there is a checkpoint of it, however often others are due.
        """
        if self.evaluator is None:
            return
        before, self.state = self.state, self.evaluator.evaluate(self.state)
        best = self.state.best
        if best is not None and best != before.best and best.step == self.state.step > 0:
            self.save(again=True)

    def validate(self) -> None:
        """Render unless this step was rendered or the run is to stop; a failed render costs no steps."""
        if self.stop.requested or self.validated_step == self.state.step or not self.is_first:
            return
        self.validated_step = self.state.step
        try:
            # The hook says what may be broken off: switching weights back must not be.
            with self.weights.shipped():
                self.hooks.validate(self.state.step, self.stop.abandoning)
        except KeyboardInterrupt:
            logger.info("the render at step %d was broken off", self.state.step)
        except UserError:
            if not self.stop.requested:
                self.save()
            raise
