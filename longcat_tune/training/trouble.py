"""What can end a run early: a signal, a loss that is not a number, a device that is full.

Turns each into a message with a remedy; decides nothing about saving.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch

from longcat_tune.errors import DataError, DeviceError, InterruptedRunError

logger = logging.getLogger(__name__)

ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""How torch words it where it has no error class of its own: on the CPU, on MPS and in CUDA's libraries."""


class StopRequest:
    """Remembers the first Ctrl-C or SIGTERM so that the step can be finished; a second Ctrl-C stops at once.

    SIGTERM never counts as the second: a launcher sends it to its children after the terminal's Ctrl-C.

    Attributes:
        requested: whether the run should end after this step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._abandonable = False

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Let the first signal break off the block with KeyboardInterrupt: a render may be dropped.

        Raises:
            KeyboardInterrupt: it came before the block.
        """
        self._abandonable = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._abandonable = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take one signal, in the main thread.

        Raises:
            InterruptedRunError: it is the second Ctrl-C.
            KeyboardInterrupt: it is the first signal and came within `abandoning`.
        """
        del frame
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            msg = (
                "stopped at once; steps since the last checkpoint are lost; the same command goes on from it"
            )
            raise InterruptedRunError(msg)
        if not self.requested:
            self.requested = True
            logger.warning("stopping after this step and saving; press Ctrl-C again to stop at once")
            if self._abandonable:
                raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; the earlier handlers come back afterwards."""
    stop = StopRequest()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def out_of_memory_reason(error: RuntimeError | MemoryError) -> str | None:
    """Say in one line how an error tells of a full device or host; None when it tells of something else."""
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not full and not any(words in str(error) for words in ALLOCATION_FAILURES):
        return None
    return str(error).partition("\n")[0] or type(error).__name__


def out_of_memory(during: str, reason: str) -> DeviceError:
    """Make the error that tells what to lower.

    Args:
        during: what was done.
        reason: from `out_of_memory_reason`.
    """
    return DeviceError(
        f"out of memory in {during} ({reason}). Change these one after another until it fits: memory_plan "
        "auto, lower validation_resolution and validation_num_video_frames, lower lora_rank, "
        "gradient_checkpointing_offload, feed_forward_chunk_size 2048, enable_group_offload, "
        "base_model_precision int8-quanto or fp8-torchao, then resolution and num_frames of the datasets. "
        "The same command goes on from the last checkpoint"
    )


@contextmanager
def explained_out_of_memory(during: str) -> Iterator[None]:
    """Turn running out of memory in the block into advice.

    Args:
        during: what was done, for the message.

    Raises:
        DeviceError: in place of torch's errors for a full device or host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = out_of_memory_reason(error)
        if reason is None:
            raise
        raise out_of_memory(during, reason) from error


def free_memory(device: torch.device) -> None:
    """Give back to the device what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def require_finite(step: int, losses: Sequence[float], grad_norm: float, clip_ids: Sequence[str]) -> None:
    """Refuse a step that would spoil the weights, naming the clips to look at.

    Args:
        step: its number.
        losses: one per sample.
        grad_norm: of all trained weights.
        clip_ids: one per sample.

    Raises:
        DataError: a loss or the gradient is infinite or not a number.
    """
    bad = [(name, loss) for name, loss in zip(clip_ids, losses, strict=True) if not math.isfinite(loss)]
    if not bad and math.isfinite(grad_norm):
        return
    if bad:
        found = "loss is " + ", ".join(f"{loss} for {name}" for name, loss in bad)
    else:
        found = f"gradient norm is {grad_norm} for {', '.join(clip_ids)}"
    msg = (
        f"step {step}: {found}, which must be a finite number; this step changed no weights. Look at "
        "these clips, lower learning_rate, or set mixed_precision: no and base_model_precision: fp32; the "
        "same command goes on from the last checkpoint"
    )
    raise DataError(msg)
