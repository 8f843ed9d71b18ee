"""How frozen weights are held: the dtype they are read in, and what quantizes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from longcat_tune.config.model import ModelSection, WeightPrecision
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.quantize import quantizer
from longcat_tune.model.blocks import Float32Linear

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """How the weights of one component are held.

    Attributes:
        dtype: what all of them are read in; embedders, norms, modulation and the last layer stay in it.
        quantize: makes a linear layer's quantized twin; None: these stay in `dtype` too.
    """

    dtype: torch.dtype
    quantize: Callable[[nn.Linear], FrozenLinear] | None

    def freeze(self, module: nn.Module) -> list[FrozenLinear]:
        """Make a module's linear layers frozen ones, in place; those that compute in float32 stay dense."""
        return freeze_linears(module, in_float32=(Float32Linear,), quantize=self.quantize)


def base_weights(model: ModelSection, device: torch.device) -> HeldWeights:
    """Say how the transformer's weights are held.

    Args:
        model: the section.
        device: where they will compute.

    Raises:
        ConfigError: the library of a quantized format is not installed.
        DeviceError: the device cannot compute with it.
    """
    return _held("base_model_precision", model.base_model_precision, model, device)


def text_encoder_weights(model: ModelSection, device: torch.device) -> HeldWeights:
    """Say how the text encoder's weights are held.

    Args:
        model: the section.
        device: where they will compute.

    Raises:
        ConfigError: the library of a quantized format is not installed.
        DeviceError: the device cannot compute with it.
    """
    return _held("text_encoder_1_precision", model.text_encoder_1_precision, model, device)


def _held(key: str, precision: WeightPrecision, model: ModelSection, device: torch.device) -> HeldWeights:
    if precision == "bf16" or precision == "fp32":
        return HeldWeights(DTYPES[precision], None)
    via = device if model.quantize_via == "accelerator" else torch.device("cpu")
    return HeldWeights(torch.bfloat16, quantizer(precision, device=device, via=via, key=key))
