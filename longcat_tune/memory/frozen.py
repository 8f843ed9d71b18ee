"""Linear layers that are never trained and whose weight may lie elsewhere until it is used.

Knows where a weight is asked for and what backward needs of it; not where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenLinear(nn.Linear):
    """A linear layer that saves nothing of its weight for backward and asks for it again there.

    A subclass of nn.Linear, so that adapters can be put on it. The results and the input's gradient are those
    of nn.Linear to the bit.

    Attributes:
        in_float32: computes in float32 whatever the weight's dtype and autocast.
        fetch: called before every use of the weight, with whether it is a forward pass that records a graph;
            None: the weight stays where it is.
    """

    in_float32: bool
    fetch: Callable[[bool], None] | None
    _live: Mapping[str, Tensor]

    @classmethod
    def of(cls, linear: nn.Linear, *, in_float32: bool = False) -> Self:
        """Take over a layer's weight and bias."""
        frozen = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        frozen.weight, frozen.bias = linear.weight, linear.bias
        frozen.requires_grad_(requires_grad=False)
        frozen.in_float32 = in_float32
        frozen.fetch = None
        frozen.use(frozen.stored())
        return frozen

    def stored(self) -> dict[str, Tensor]:
        """What the weight is made from, where it is kept; the names are the layer's own."""
        return {"weight": self.weight}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Let what is stored lie elsewhere, with the same values."""
        self.weight = nn.Parameter(tensors["weight"], requires_grad=False)
        self.use(self.stored())

    def use(self, tensors: Mapping[str, Tensor]) -> None:
        """Compute with these from now on: the stored tensors or their copies on a device."""
        self._live = tensors

    def live_weight(self) -> Tensor:
        """The weight to compute with, of shape [out, in]."""
        return self._live["weight"]

    def fetched_weight(self) -> Tensor:
        """The weight to compute with, brought to where the layer computes if it is elsewhere."""
        if self.fetch is not None:
            self.fetch(torch.is_grad_enabled())
        return self.live_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        if self.fetch is not None:
            self.fetch(torch.is_grad_enabled())
        if not self.in_float32:
            return _project(x, self)
        with torch.autocast(x.device.type, enabled=False):
            return _project(x.float(), self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep what is in use together with what is stored when the module moves."""
        resident = self.fetch is None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if resident:
            self.use(self.stored())
        return self


def freeze_linears(
    module: nn.Module,
    *,
    in_float32: tuple[type[nn.Linear], ...] = (),
    quantize: Callable[[nn.Linear], FrozenLinear] | None = None,
) -> list[FrozenLinear]:
    """Replace every linear layer below a module.

    Args:
        module: changed in place.
        in_float32: the classes of layers that compute in float32; these are never quantized.
        quantize: makes the new layer of any other; None: they keep their weights as they are.

    Returns:
        The new layers, in the order of their names.
    """
    linears = [(name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear)]
    frozen = []
    for name, linear in linears:
        if isinstance(linear, FrozenLinear):
            frozen.append(linear)
            continue
        owner, _, leaf = name.rpartition(".")
        exact = isinstance(linear, in_float32)
        made = FrozenLinear.of(linear, in_float32=exact) if exact or quantize is None else quantize(linear)
        setattr(module.get_submodule(owner), leaf, made)
        frozen.append(made)
    return frozen


def _project(x: Tensor, layer: FrozenLinear) -> Tensor:
    projected: Tensor = _Project.apply(x, layer)  # type: ignore[no-untyped-call]
    return projected


class _Project(torch.autograd.Function):
    """x W^T + b, with W asked for again in backward instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        bias: Tensor | None = layer.bias
        if not layer.in_float32:
            return F.linear(x, layer.live_weight(), bias)
        return F.linear(x, layer.live_weight().float(), None if bias is None else bias.float())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        layer, grad = ctx.layer, grads[0]
        if layer.fetch is not None:
            layer.fetch(False)
        weight = layer.live_weight().to(grad.dtype)
        # As torch's own formula does it: one product of two matrices.
        return grad.flatten(0, -2).mm(weight).unflatten(0, grad.shape[:-1]), None
