"""The weights of a few layers in one flat piece of host memory, so that one copy brings them all.

Knows names, dtypes and shapes of tensors; nothing of layers or of when they are copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from longcat_tune.memory.host_memory import HostMemory, mapped

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
    """One flat memory and what lies where in it; it is never written again.

    Attributes:
        memory: uint8, a multiple of 256 bytes.
        layout: of all tensors, owner by owner.
        num_owners: how many layers there are.
        locked: what keeps the memory page-locked; None: it is mapped from a file.
    """

    memory: Tensor
    layout: tuple[Place, ...]
    num_owners: int
    locked: HostMemory | None

    @classmethod
    def holding(
        cls, tensors: Sequence[Mapping[str, Tensor]], *, pinned: bool, folder: Path | None = None
    ) -> Self:
        """Copy tensors into new memory.

        Args:
            tensors: for each owner, by name; on any device.
            pinned: page-lock the memory, so that copies to the device run beside its computation.
            folder: map the memory from a file there instead, as `mapped` does.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        layout, end = [], 0
        for owner, named in enumerate(tensors):
            for name, tensor in named.items():
                layout.append(Place(owner, name, tensor.dtype, tuple(tensor.shape), end))
                end += math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT
        host = HostMemory(end, pinned=pinned and folder is None)
        for place in layout:
            place.view(host.bytes).copy_(tensors[place.owner][place.name])
        if folder is None:
            return cls(host.bytes, tuple(layout), len(tensors), host)
        return cls(mapped(host.bytes, folder), tuple(layout), len(tensors), None)

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
