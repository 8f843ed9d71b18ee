"""Linear layers whose weight is kept in few bits and made dense each time it is used.

Knows how kept bytes become a weight again, by plain torch on any device; not which library made the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from longcat_tune.memory.frozen import FrozenLinear

Form = Callable[[Mapping[str, Tensor], tuple[int, int]], Tensor]
"""Makes the dense weight of a shape [out, in] from what is kept of it, in a dtype of its own."""


class QuantizedLinear(FrozenLinear):
    """A frozen linear layer that makes its weight dense in forward and again in backward.

    Nothing dense lives between the two. Its results and its input's gradient are those of a layer that holds
    the dense weight. What is kept is called `weight`, like the layer's own, and is int8 whatever it stands
    for: the one dtype that PEFT and transformers know to be no measure of the activations', and that a
    module's `to(dtype)` leaves alone. A LoRA cannot be merged into it: torch refuses to add a float to it.

    Attributes:
        form: makes the weight dense.
        dense_dtype: of the dense weight: what it had before.
    """

    form: Form
    dense_dtype: torch.dtype
    _beside: tuple[str, ...] = ()

    @classmethod
    def made_of(cls, linear: nn.Linear, tensors: Mapping[str, Tensor], form: Form) -> Self:
        """Take a layer's place.

        Args:
            linear: the dense layer; its bias is kept as it is.
            tensors: `weight`, int8, and what else the form needs, by names of its own.
            form: makes them dense.
        """
        quantized = cls.of(linear)
        quantized.form, quantized.dense_dtype = form, linear.weight.dtype
        quantized.keep(tensors)
        return quantized

    def stored(self) -> dict[str, Tensor]:
        """What the weight is made from, where it is kept."""
        return {"weight": self.weight} | {name: self.get_buffer(name) for name in self._beside}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Let what is stored lie elsewhere, with the same values."""
        self._beside = tuple(name for name in tensors if name != "weight")
        for name in self._beside:
            self.register_buffer(name, tensors[name])
        super().keep(tensors)

    def live_weight(self) -> Tensor:
        """The dense weight of shape [out, in], made anew."""
        return self.form(self._live, (self.out_features, self.in_features)).to(self.dense_dtype)


def dense_from_int8(kept: Mapping[str, Tensor], _: tuple[int, int]) -> Tensor:
    """Integers times the scale of their row.

    Args:
        kept: weight [out, in]; scale [out, 1].
        _: the shape, which the weight has itself.
    """
    return kept["scale"] * kept["weight"]


def dense_from_fp8(kept: Mapping[str, Tensor], _: tuple[int, int]) -> Tensor:
    """Float8 numbers (e4m3fn) times the scale of their row.

    Args:
        kept: weight [out, in], the numbers' bytes; scale [out, 1].
        _: the shape, which the weight has itself.
    """
    scale = kept["scale"]
    return scale * kept["weight"].view(torch.float8_e4m3fn).to(scale.dtype)


def dense_from_int4(kept: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Four-bit numbers times the scale of their group, less its shift.

    Args:
        kept: weight [groups / 2, size], in each byte's lower half the first half of the groups, in its upper
            half the second; scale and shift [groups, 1]. A group is a run of numbers in a row.
        shape: [out, in].
    """
    pairs, scale = kept["weight"].view(torch.uint8), kept["scale"]
    numbers = torch.cat([pairs & 15, pairs >> 4])[: len(scale)]
    return (scale * numbers).sub_(kept["shift"]).view(shape)
