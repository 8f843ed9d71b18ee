"""The weights of a few layers in one flat piece of host memory, so that one copy brings them all.

Knows names, dtypes and shapes of tensors; nothing of layers or of when they are copied.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes; what CUDA's own allocator and every kernel's vector loads are content with."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a flat memory.

    Attributes:
        owner: number of the layer it belongs to.
        name: the layer's name for it.
        dtype: of its elements.
        shape: of the tensor.
        offset: bytes from the start.
    """

    owner: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor that lies there, without a copy."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return memory[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """One flat memory and what lies where in it.

    Attributes:
        memory: uint8.
        layout: of all tensors, owner by owner.
        num_owners: how many layers there are.
    """

    memory: Tensor
    layout: tuple[Place, ...]
    num_owners: int

    @classmethod
    def holding(cls, tensors: Sequence[Mapping[str, Tensor]], *, pinned: bool) -> Self:
        """Copy tensors into new memory.

        Args:
            tensors: for each owner, by name; on any device.
            pinned: page-lock the memory, so that copies to the device run beside its computation.
        """
        layout, end = [], 0
        for owner, named in enumerate(tensors):
            for name, tensor in named.items():
                layout.append(Place(owner, name, tensor.dtype, tuple(tensor.shape), end))
                end += math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT
        memory = host_memory(end, pinned=pinned)
        for place in layout:
            place.view(memory).copy_(tensors[place.owner][place.name])
        return cls(memory, tuple(layout), len(tensors))

    @property
    def num_bytes(self) -> int:
        """Size of the memory."""
        return self.memory.numel()

    def views(self, memory: Tensor) -> list[dict[str, Tensor]]:
        """The tensors of each owner in another memory of the same layout."""
        named: list[dict[str, Tensor]] = [{} for _ in range(self.num_owners)]
        for place in self.layout:
            named[place.owner][place.name] = place.view(memory)
        return named

    def tensors(self) -> list[dict[str, Tensor]]:
        """The tensors of each owner in this memory."""
        return self.views(self.memory)


def host_memory(num_bytes: int, *, pinned: bool) -> Tensor:
    """Give uint8 host memory; page-locked if asked for and possible.

    Locked in place, because torch's own pinned allocator rounds 564 MB up to 1 GB.
    """
    memory = torch.empty(num_bytes, dtype=torch.uint8)
    if pinned and num_bytes:
        _pin(memory)
    return memory


def _pin(memory: Tensor) -> None:
    runtime = torch.cuda.cudart()
    failure = int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if failure:
        logger.warning(
            "%.1f GB of host memory could not be page-locked (CUDA error %d): copies to the device will not "
            "overlap with computation. Free host memory or raise the limit of locked memory (ulimit -l)",
            memory.numel() / 1e9,
            failure,
        )
        return
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, memory.data_ptr())
