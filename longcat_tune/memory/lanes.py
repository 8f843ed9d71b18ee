"""Copies between host and device that run beside the computation; in order and at once where they cannot.

Whoever asks for a copy keeps what is copied alive until the computation has waited for its arrival: then
freed memory can be used again as soon as the host says so. (`record_stream` would keep it until the device
gets there, while the host, which is many blocks ahead, allocates more.)
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

Arrival = torch.cuda.Event | None
"""When a copy is done; None: it is done already."""


class Lane:
    """One stream of copies, which are made in the order they are asked for.

    Args:
        device: on CUDA copies run beside the computation; elsewhere they are done when they return.
        overlap: False makes them in order and at once on CUDA too.

    Attributes:
        device: as given.
        timed: set to True to have the time measured that the computation waits for copies.
    """

    def __init__(self, device: torch.device, *, overlap: bool = True) -> None:
        self.device = device
        self.timed = False
        self._stream = torch.cuda.Stream(device) if overlap and device.type == "cuda" else None
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @property
    def overlaps(self) -> bool:
        """Whether copies run beside the computation."""
        return self._stream is not None

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """Copy bytes into the beginning of a target, once all that was computed so far is done with it.

        Args:
            target: flat, at least as long as the source; on the host page-locked, if copies are to overlap.
            source: flat. Neither may be written or let go of before `wait` for the arrival.
        """
        part = target[: source.numel()]
        if self._stream is None:
            began = time.perf_counter()
            part.copy_(source)
            self._seconds += time.perf_counter() - began
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            part.copy_(source, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record(self._stream)
        return arrival

    def wait(self, arrival: Arrival) -> None:
        """Let what is computed from now on see a copy; the host goes on at once."""
        if arrival is None:
            return
        stream = torch.cuda.current_stream(self.device)
        if not self.timed:
            stream.wait_event(arrival)
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        stream.wait_event(arrival)
        after.record(stream)
        self._waits.append((before, after))

    def protect(self, memory: Tensor) -> None:
        """Keep device memory from being given to others when it is freed before its last copy is done."""
        if self._stream is not None:
            memory.record_stream(self._stream)

    def finish(self) -> None:
        """Let the host wait until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def waited_seconds(self) -> float:
        """How long the computation has waited for copies since this was asked last, while `timed`.

        The host waits for the device first. Where copies do not overlap, it is the time they took.
        """
        if self._stream is not None:
            torch.cuda.synchronize(self.device)
            self._seconds = sum(before.elapsed_time(after) for before, after in self._waits) / 1000
            self._waits.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
