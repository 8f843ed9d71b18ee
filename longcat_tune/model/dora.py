"""DoRA on PEFT's layers: the magnitudes, and the forward pass that uses them.

PEFT's own makes every update through an identity matrix and takes its norms in the dtype of the activations:
in bf16 a new adapter is then off by up to 0.2 % where it should change nothing. Here norms are float32, and
dropout acts on the adapter's input only. The parts fit PEFT's places for them; PEFT itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longcat_tune.model.merge import row_norms

BaseWeight = Callable[[nn.Linear], Tensor]
"""Gives a base layer's dense weight [out, in] on the device that it computes on."""


def own_weight(linear: nn.Linear) -> Tensor:
    """The weight of a layer that holds it as it is."""
    return linear.weight


class Magnitude(nn.Module):
    """The trained lengths [out] of a layer's rows, float32."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(lengths)


class DoraForward:
    """What a layer with magnitudes computes; one serves all layers.

    Args:
        base_weight: of the layers that it serves.
    """

    def __init__(self, base_weight: BaseWeight) -> None:
        self._base_weight = base_weight

    def forward(self, layer: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add one adapter's part to a layer's result.

        With g = magnitude / norm and strength 1, weight W becomes g (W + scale B A); with another strength
        the change is multiplied. The norm counts as a constant for gradients, as in the paper (4.3).

        Args:
            layer: PEFT's.
            active_adapter: the adapter's name.
            x: the layer's input.
            result: of the base layer and of adapters before this one.
            **_: what PEFT hands to other kinds of adapters.
        """
        own = layer.lora_alpha[active_adapter] / layer.r[active_adapter]
        strength = layer.scaling[active_adapter] / own
        factors = (
            strength
            * layer.lora_magnitude_vector[active_adapter].weight
            / current_norms(layer, active_adapter, self._base_weight)
        )
        base = layer.get_base_layer()
        # The first adapter finds the base layer's result alone; a later one has to ask for it again.
        first = next(name for name in layer.active_adapters if name in layer.lora_A) == active_adapter
        plain = result if first else base(x.to(self._base_weight(base).dtype))
        if base.bias is not None:
            plain = plain - base.bias
        dropped = layer.lora_dropout[active_adapter](x)
        update = layer.lora_B[active_adapter](layer.lora_A[active_adapter](dropped))
        changed: Tensor = (
            result + (factors - strength).to(result.dtype) * plain + (own * factors).to(update.dtype) * update
        )
        return changed


def current_norms(layer: Any, adapter: str, base_weight: BaseWeight) -> Tensor:
    """Lengths [out] of the rows of a layer's adapted weight, in float32 whatever the surroundings.

    Args:
        layer: PEFT's.
        adapter: its name.
        base_weight: of the layer that it adapts.
    """
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    with torch.no_grad(), torch.autocast(down.device.type, enabled=False):
        own = layer.lora_alpha[adapter] / layer.r[adapter]
        return row_norms(base_weight(layer.get_base_layer()), down, up, own)
