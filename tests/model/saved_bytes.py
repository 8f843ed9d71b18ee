"""How much memory a graph holds between forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], object], held: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass, beyond tensors that are held anyway.

    Args:
        run: the forward pass; its result is dropped before the count ends.
        held: of these nothing is counted.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)
