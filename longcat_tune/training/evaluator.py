"""Evaluations within a run: shared out over its processes, broken off by signals, and never its end.

Decides neither when to evaluate nor what is measured; keeps the record that checkpoints hold.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain

from longcat_tune.errors import UserError
from longcat_tune.training.eval_result import ClipLosses, EvalResult, best_of, described
from longcat_tune.training.evaluation import HeldOut, measure
from longcat_tune.training.interfaces import LoopHooks, LoopState
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.trouble import StopRequest, free_memory

logger = logging.getLogger(__name__)


class Evaluator:
    """Measures the loss on held-out clips as the run goes on.

    Args:
        held_out: what is measured.
        parts: of the steps.
        hooks: hear the event.
        stop: a signal breaks an evaluation off.
        state: that the run begins with.
    """

    def __init__(
        self, held_out: HeldOut, parts: LoopParts, hooks: LoopHooks, stop: StopRequest, state: LoopState
    ) -> None:
        self.held_out = held_out
        self.parts = parts
        self.hooks = hooks
        self.stop = stop
        best = state.best
        self.goes_on = best is not None and best.identity == held_out.identity
        self.tried_step = best.last_step if best is not None and self.goes_on else None

    def evaluate(self, state: LoopState) -> LoopState:
        """Measure unless this step was tried before; all processes of a run call it together.

        Returns:
            The state with the record; as it was when any process failed, was broken off, or is to stop.

        Raises:
            UserError: this process failed in a run where all keep step: the others wait for it.
        """
        if self.tried_step == state.step:
            return state
        self.tried_step = state.step
        began = time.perf_counter()
        shares = self.parts.processes.gather(self._share(state.step))
        if self.parts.processes.lockstep:
            # All have measured the same clips.
            del shares[1:]
        whole = [share for share in shares if share is not None]
        if len(whole) < len(shares):
            return state
        result = EvalResult.of(
            chain.from_iterable(whole), sigmas=self.held_out.sigmas, identity=self.held_out.identity
        )
        best = best_of(state.best, result, state.step)
        if self.parts.processes.is_first:
            fields = result.as_json() | {"best_loss": best.loss, "best_step": best.step}
            seconds = time.perf_counter() - began
            self.hooks.on_event("evaluation", {"step": state.step, **fields, "seconds": seconds})
            logger.info("%s", described(result, state.step, best))
        return replace(state, best=best)

    def _share(self, step: int) -> tuple[ClipLosses, ...] | None:
        """Measure this process's clips; None when that cannot be done, which costs no steps."""
        lockstep = self.parts.processes.lockstep
        # Agreed on, as a signal may reach one process before another.
        if self.parts.processes.agree(self.stop.requested):
            return None
        device = self.parts.accelerator.device
        try:
            # Broken off inside only: switching the weights back must not be.
            with self.parts.weights.shipped(), nullcontext() if lockstep else self.stop.abandoning():
                return measure(
                    self.parts.model,
                    self.held_out.clips(),
                    sigmas=self.held_out.sigmas,
                    device=device,
                    compute=self.parts.compute,
                )
        except KeyboardInterrupt:
            logger.info("the evaluation at step %d was broken off", step)
        except UserError as error:
            if lockstep:
                raise
            logger.warning("training goes on without the evaluation at step %d: %s", step, error)
        free_memory(device)
        return None
