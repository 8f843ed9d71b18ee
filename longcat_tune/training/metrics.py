"""What is measured in a step, and events.jsonl: the one record that console, trackers and web UI read.

Knows nothing of how steps are made or shown.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from longcat_tune.files import explained_disk_errors

logger = logging.getLogger(__name__)

BANDS = 10
"""Into which sigma is divided for the log."""

EventName = Literal[
    "run_start",
    "resume",
    "step",
    "step_skipped",
    "sigma_bands",
    "evaluation",
    "validation",
    "render_failed",
    "render_smaller",
    "preview",
    "checkpoint",
    "run_end",
    "error",
]
"""Every kind of line in events.jsonl. Each holds `event` and `time` (seconds since 1970), and:

run_start: what the run was turned into: max_steps, clips, device, versions.
resume: step and folder that the run goes on from.
step: the fields of StepMetrics.
step_skipped: step, reason and clip_ids of a step that changed nothing, for lack of memory.
sigma_bands: step, and losses and counts: mean unweighted loss (null: none) and number of samples with sigma
    from 0 to 0.1, 0.1 to 0.2 and so on, over the steps since the last such event; regularisation data are not
    among them.
evaluation: step, the fields of EvalResult, best_loss and best_step of the best one so far, and the seconds
    that it took.
validation: step, the files rendered, and numbers by video; see sampling.numbers.
render_failed: step, render, kind, message and traceback of one that could not be made; training goes on.
preview: step, render, denoising_step and file of a picture of a render on its way; later ones replace it.
render_smaller: step, render, change and reason of one that did not fit into memory as it was asked for.
checkpoint: step and folder.
run_end: how it ended: finished, interrupted or failed; the peaks of device and host memory in bytes,
    predicted and measured (null: there is no such memory).
error: kind and message, as the user saw it.
"""


Listener = Callable[[EventName, Mapping[str, Any]], None]
"""Takes an event and its fields."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step is logged with.

    Attributes:
        step: its number, from 1.
        epoch: from 0.
        loss: what was minimised: the mean over its micro batches, weighted by noise level where that is
            asked for; None: all of them were regularisation data.
        regularisation_loss: the same of regularisation data, where it tells how far the model has moved;
            None: it had none.
        learning_rate: the one it was made with; of prodigy the one it has found.
        grad_norm: of all trained weights together, before clipping.
        sigma_mean: over its samples.
        samples: clips trained on.
        seconds: wall time of its forward and backward passes and update; waiting for its batches, saving and
            rendering are not in it.
        memory_gib: peak so far, as `process_memory.peak_memory_gib`.
    """

    step: int
    epoch: int
    loss: float | None
    regularisation_loss: float | None
    learning_rate: float
    grad_norm: float
    sigma_mean: float
    samples: int
    seconds: float
    memory_gib: float


class SigmaBands:
    """Losses by noise level, in ten bands of sigma: the mean over all of them hides what each learns."""

    def __init__(self) -> None:
        self._sums = [0.0] * BANDS
        self._counts = [0] * BANDS

    def add(self, losses: Sequence[float], sigmas: Sequence[float]) -> None:
        """Take in one step.

        Args:
            losses: one per sample.
            sigmas: one per sample, 0 to 1.
        """
        for loss, sigma in zip(losses, sigmas, strict=True):
            band = min(BANDS - 1, int(sigma * BANDS))
            self._sums[band] += loss
            self._counts[band] += 1

    def take(self) -> dict[str, list[float | None] | list[int]]:
        """Give the fields `losses` and `counts` of an event, and begin anew."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = [0.0] * BANDS, [0] * BANDS
        losses = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return {"losses": losses, "counts": counts}

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return any(self._counts)


class EventLog:
    """Appends events to a JSON-lines file; each is on its way to the disk when `write` returns.

    Args:
        path: created when missing. Half a line at its end, left by a killed run, is removed. None: nothing is
            written, as in all but the first process of a run.
        listeners: hear every event after it was written, such as trackers.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, path: Path | None, listeners: Sequence[Listener] = ()) -> None:
        self.path = path if path is not None else Path(os.devnull)
        self.listeners = list(listeners)
        if path is None:
            self._file = self.path.open("ab", buffering=0)
            return
        with explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: one line is one write, so that a kill can tear at most the last one.
            self._file = path.open("ab", buffering=0)
            _drop_half_line(path)

    def write(self, event: EventName, **fields: Any) -> None:
        """Append one event.

        Args:
            event: its kind.
            **fields: JSON values; finite numbers only.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, allow_nan=False)
        with explained_disk_errors(self.path):
            self._file.write(line.encode() + b"\n")
        for listener in self.listeners:
            listener(event, fields)

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Let one more hear of every event of the block."""
        self.listeners.append(listener)
        try:
            yield
        finally:
            self.listeners.remove(listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _drop_half_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.info("%s: removed half an event that a killed run left at its end", path)
            file.truncate(whole)
