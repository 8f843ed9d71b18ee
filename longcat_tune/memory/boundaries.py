"""The inputs of recomputed blocks, kept in host memory between forward and backward.

Each goes out right after its block has read it and comes back one visit before backward needs it. Knows
tensors that autograd saves, nothing of what they mean.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from longcat_tune.memory.host_memory import HostMemory
from longcat_tune.memory.lanes import Arrival, Lane


class Boundaries:
    """Keeps what autograd saves within `saving` in host memory.

    Host memory is used again from step to step; it holds as much as the largest step needs.

    Args:
        device: where the tensors come from and go back to.
        at_least_bytes: smaller tensors stay on the device, and such with gaps, which are parts of others.

    Attributes:
        lane: of the copies.
    """

    def __init__(self, device: torch.device, *, at_least_bytes: int = 1 << 10) -> None:
        self.lane = Lane(device)
        self._at_least_bytes = at_least_bytes
        self._slabs = _Slabs(self.lane)
        self._last: weakref.ref[_Saved] | None = None
        self._going: tuple[Tensor, Arrival] | None = None
        self._coming: dict[_Saved, tuple[Tensor, Arrival]] = {}

    @property
    def host_bytes(self) -> int:
        """Host memory that is held, in use or not."""
        return self._slabs.num_bytes

    def saving(self) -> AbstractContextManager[object]:
        """Within the block, what autograd saves goes out; it comes back when backward asks for it."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        elsewhere = tensor.device.type != self.lane.device.type
        if elsewhere or tensor.nbytes < self._at_least_bytes or not _is_dense(tensor):
            return tensor
        self._drop_sent()
        self._drop_unused()
        dense = tensor.detach()
        slab = self._slabs.take(dense.nbytes)
        saved = _Saved(dense, slab, before=self._last)
        self._going = (dense, self.lane.copy(slab.bytes, _bytes(dense)))
        # When the graph lets go of it, after backward or without, its memory serves the next one.
        weakref.finalize(saved, self._slabs.give, slab).atexit = False
        self._last = weakref.ref(saved)
        return saved

    def _unpack(self, saved: Tensor | _Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        self._drop_sent()
        self._bring_back(saved)
        # Backward goes the other way round: what was saved before this will be asked for next.
        following = saved.before() if saved.before is not None else None
        if following is not None:
            self._bring_back(following)
        back, arrival = self._coming.pop(saved)
        self.lane.wait(arrival)
        return back

    def _bring_back(self, saved: _Saved) -> None:
        """Start the copy to the device, unless it has been."""
        if saved not in self._coming:
            back = saved.empty(self.lane.device)
            self._coming[saved] = (back, self.lane.copy(_bytes(back), saved.slab.bytes[: back.nbytes]))

    def _drop_sent(self) -> None:
        """Let go of what went out last; its copy had a whole block's time."""
        if self._going is not None:
            self.lane.wait(self._going[1])
            self._going = None

    def _drop_unused(self) -> None:
        """Let go of what came back for a backward pass that was broken off."""
        for _, arrival in self._coming.values():
            self.lane.wait(arrival)
        self._coming.clear()


class _Saved:
    """One tensor that is out, or on its way back."""

    def __init__(self, dense: Tensor, slab: HostMemory, *, before: weakref.ref[_Saved] | None) -> None:
        self.shape, self.stride, self.dtype = dense.shape, dense.stride(), dense.dtype
        self.slab, self.before = slab, before

    def empty(self, device: torch.device) -> Tensor:
        """Device memory for it, in the same order as it was: recomputing must not take other kernels."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


class _Slabs:
    """Host memories that are used again, whichever is large enough; a too small one makes way for it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._free: list[HostMemory] = []
        self.num_bytes = 0

    def take(self, num_bytes: int) -> HostMemory:
        fitting = [slab for slab in self._free if slab.num_bytes >= num_bytes]
        if fitting:
            slab = min(fitting, key=_size)
            self._free.remove(slab)
            return slab
        if self._free:
            largest = max(self._free, key=_size)
            # The last copy from it may still be under way.
            self._lane.finish()
            self._free.remove(largest)
            self.num_bytes -= largest.num_bytes
        self.num_bytes += num_bytes
        return HostMemory(num_bytes, pinned=self._lane.overlaps)

    def give(self, slab: HostMemory) -> None:
        self._free.append(slab)


def _size(slab: HostMemory) -> int:
    return slab.num_bytes


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill its memory, in whatever order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _bytes(dense: Tensor) -> Tensor:
    """The memory of a dense tensor, flat, without a copy."""
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
