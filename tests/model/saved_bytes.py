"""How much memory a graph holds between forward and backward, and formulas as autograd alone holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longcat_tune.model.elementwise import (
    Cuts,
    Elementwise,
    Formula,
    gated_sum_formula,
    gated_sum_ordered_formula,
)


class PlainElementwise(Elementwise):
    """The formulas as they are written, recorded by autograd operation by operation."""

    def __init__(self) -> None:
        """Without a runner."""

    def add_gated(
        self, x_BNC: Tensor, gate_BTC: Tensor, update_BNC: Tensor, frame_N: Tensor | None = None
    ) -> Tensor:
        if frame_N is not None:
            return gated_sum_ordered_formula(x_BNC, gate_BTC, update_BNC, frame_N)
        frames = (gate_BTC.shape[1], -1)
        return gated_sum_formula(
            x_BNC.unflatten(1, frames), gate_BTC[:, :, None], update_BNC.unflatten(1, frames)
        ).flatten(1, 2)

    def _recomputed(self, formula: Formula, cuts: Cuts, *tensors: Tensor) -> Tensor:
        return formula(*tensors)


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
