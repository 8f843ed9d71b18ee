"""The inputs of recomputed blocks, kept in host memory between forward and backward.

Each goes out right after its block has read it and comes back one visit before backward needs it. Knows
tensors that autograd saves, nothing of what they mean.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from longcat_tune.memory.host_buffer import host_memory
from longcat_tune.memory.lanes import Arrival, Lane


class Boundaries:
    """Keeps what autograd saves within `saving` in host memory.

    Host memory is used again from step to step; it holds as much as one step needs at most.

    Args:
        device: where the tensors come from and go back to.
        at_least_bytes: smaller tensors stay on the device.
    """

    def __init__(self, device: torch.device, *, at_least_bytes: int = 1 << 20) -> None:
        self._lane = Lane(device)
        self._at_least_bytes = at_least_bytes
        self._free: dict[int, list[Tensor]] = {}
        self._last: weakref.ref[_Saved] | None = None
        self.host_bytes = 0

    def saving(self) -> AbstractContextManager[object]:
        """Within the block, what autograd saves goes out; it comes back when backward asks for it."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        if tensor.nbytes < self._at_least_bytes or tensor.device.type != self._lane.device.type:
            return tensor
        free = self._free.setdefault(tensor.nbytes, [])
        if free:
            memory = free.pop()
        else:
            memory = host_memory(tensor.nbytes, pinned=self._lane.overlaps)
            self.host_bytes += tensor.nbytes
        saved = _Saved(tensor, memory, self._lane, before=self._last)
        # When the graph lets go of it, after backward or without, its memory serves the next one.
        weakref.finalize(saved, free.append, memory)
        self._last = weakref.ref(saved)
        return saved


class _Saved:
    """One tensor that is out, or on its way back."""

    def __init__(
        self, tensor: Tensor, memory: Tensor, lane: Lane, *, before: weakref.ref[_Saved] | None
    ) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.memory, self.lane, self.before = memory, lane, before
        self.back: Tensor | None = None
        self.arrival: Arrival = None
        lane.copy(memory, _bytes(tensor.detach().contiguous()))

    def bring_back(self) -> Tensor:
        """Start the copy to the device, unless it has been."""
        if self.back is None:
            self.back = torch.empty(self.shape, dtype=self.dtype, device=self.lane.device)
            self.arrival = self.lane.copy(_bytes(self.back), self.memory)
        return self.back


def _unpack(saved: Tensor | _Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    back = saved.bring_back()
    # Backward goes the other way round: what was saved before this will be asked for next.
    following = saved.before() if saved.before is not None else None
    if following is not None:
        following.bring_back()
    saved.lane.wait(saved.arrival)
    saved.back = None
    return back


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
