"""Copies between host and device that run beside the computation; in order and at once where they cannot."""

from __future__ import annotations

import torch
from torch import Tensor

Arrival = torch.cuda.Event | None
"""When a copy is done; None: it is done already."""


class Lane:
    """One stream of copies, which are made in the order they are asked for.

    Args:
        device: on CUDA copies run beside the computation; elsewhere they are done when they return.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def overlaps(self) -> bool:
        """Whether copies run beside the computation."""
        return self._stream is not None

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """Copy bytes into the beginning of a target, once all that was computed so far is done with it.

        Args:
            target: flat, at least as long as the source; on the host page-locked, if copies are to overlap.
            source: flat; must not change until the copy is done, but may be let go of.
        """
        part = target[: source.numel()]
        if self._stream is None:
            part.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            part.copy_(source, non_blocking=True)
            for tensor in (part, source):
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
            arrival = torch.cuda.Event()
            arrival.record(self._stream)
        return arrival

    def wait(self, arrival: Arrival) -> None:
        """Let what is computed from now on see a copy; the host goes on at once."""
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)
