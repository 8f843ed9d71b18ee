"""Counts what tensors hold, in the real model at its real size, on tensors that have no memory.

What torch.cuda.max_memory_allocated would say of the same operations, less what kernels take for themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.lora_targets import lora_target_modules


class Counting(TorchDispatchMode):
    """Counts the bytes of all storages that live, each rounded up as CUDA's allocator does.

    Attributes:
        live: bytes now.
        peak: the most since the last `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> int:
        """Look for a new peak from here on; returns what lives now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // 512) * 512
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@contextmanager
def counting() -> Iterator[Counting]:
    """Within the block tensors have no memory, and what they would have is counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), Counting() as count:
        yield count


def released_model(depth: int, *, targets: str = "attention", rank: int = 16) -> LongCatVideoTransformer:
    """The released model with fewer blocks and an adapter, on the meta device, as a run has it."""
    with torch.device("meta"):
        model = LongCatVideoTransformer(depth=depth).to(torch.bfloat16)
    model.requires_grad_(requires_grad=False)
    freeze_linears(model.blocks, in_float32=(Float32Linear,))
    add_lora(
        model,
        targets=lora_target_modules(model, targets),
        rank=rank,
        alpha=rank,
        generator=Generator(),
        autocast=True,
    )
    return model


def materialize(model: nn.Module) -> None:
    """Give a model on the meta device weights, within `counting`."""
    for module in model.modules():
        for name, own in list(module._parameters.items()):
            if own is not None:
                fresh = torch.empty(own.shape, dtype=own.dtype)
                module._parameters[name] = nn.Parameter(fresh, requires_grad=own.requires_grad)
        if isinstance(module, FrozenLinear):
            module.use(module.stored())
