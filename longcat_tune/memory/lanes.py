"""Copies between host and device that run beside the computation; in order and at once where they cannot."""

from __future__ import annotations

import torch
from torch import Tensor


class Lanes:
    """One stream of copies, and an event for each place that is copied to.

    Args:
        device: on CUDA copies get a stream of their own; elsewhere they are done when `copy` returns.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: dict[int, torch.cuda.Event] = {}

    @property
    def overlaps(self) -> bool:
        """Whether copies run beside the computation."""
        return self._stream is not None

    def copy(self, target: Tensor, source: Tensor, lane: int) -> None:
        """Copy bytes into the beginning of a target, after all that was computed so far with its former ones.

        Args:
            target: flat, at least as long as the source.
            source: flat; must not change until the copy is done.
            lane: number that `wait` asks for.
        """
        part = target[: source.numel()]
        if self._stream is None:
            part.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            part.copy_(source, non_blocking=True)
            self._events.setdefault(lane, torch.cuda.Event()).record(self._stream)

    def wait(self, lane: int) -> None:
        """Let what is computed from now on see the last copy of a lane; the host goes on at once."""
        event = self._events.get(lane)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
