"""A lane whose copies happen at the last moment: when they are waited for.

Stands for a device's copy stream on the CPU. What is used without waiting for its copy, written or let go of
before it, comes out wrong here every time, and on a device now and then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateLane:
    def __init__(self, device: torch.device, *, overlap: bool = True) -> None:
        del overlap
        self.device = device
        self.overlaps = False
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._done = 0

    def copy(self, target: Tensor, source: Tensor) -> int:
        self._waiting.append((_own(target, source.numel()), _own(source, source.numel())))
        return self._done + len(self._waiting)

    def wait(self, arrival: int) -> None:
        while self._done < arrival:
            target, source = self._waiting.pop(0)
            # One of each is this lane's own.
            assert min(users(target), users(source)) > 1, "let go of before the copy was waited for"
            target.copy_(source)
            self._done += 1

    def protect(self, memory: Tensor) -> None:
        pass

    def finish(self) -> None:
        self.wait(self._done + len(self._waiting))


def _own(flat: Tensor, size: int) -> Tensor:
    """The same memory in a tensor that keeps no other tensor alive, as a view would."""
    return torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage(), flat.storage_offset(), (size,))


def users(tensor: Tensor) -> int:
    """How many tensors use the memory of this one, itself among them."""
    storage: Any = tensor.untyped_storage()
    # Less the storage object of this function.
    return torch._C._storage_Use_Count(storage._cdata) - 1
