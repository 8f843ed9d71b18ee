"""Weights in few bits: the one door to optimum-quanto and torchao.

The libraries choose scales and round, so that the bytes are theirs; their layers and tensor classes are not
used: those keep a dense weight for backward, compile at run time, or crash on weights that are not aligned.
Sees single layers, never LongCat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from longcat_tune.errors import ConfigError, DeviceError
from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.quantized import (
    Form,
    QuantizedLinear,
    dense_from_fp8,
    dense_from_int4,
    dense_from_int8,
)

if TYPE_CHECKING:
    from longcat_tune.config.model import QuantizedPrecision

PIECE_NUMBERS = 1 << 18
"""Numbers of a weight that are quantized at once; the libraries make up to 16 bytes for each on the way."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One format.

    Attributes:
        package: what is installed for it.
        library: what is imported.
        quantize: makes of a dense weight [out, in] what is kept.
        form: makes that dense again.
    """

    package: str
    library: str
    quantize: Callable[[Tensor], dict[str, Tensor]]
    form: Form


def quantizer(
    precision: QuantizedPrecision, *, device: torch.device, via: torch.device, key: str
) -> Callable[[nn.Linear], FrozenLinear]:
    """Give what makes a layer's quantized twin.

    Args:
        precision: the format.
        device: where the layers will compute.
        via: where they are quantized, one at a time; what is kept of a weight stays there, its layer's bias
            where it was.
        key: of the config, for messages.

    Raises:
        ConfigError: the library is not installed.
        DeviceError: the device cannot compute with this format.
    """
    kind = KINDS[precision]
    if find_spec(kind.library.partition(".")[0]) is None:
        raise ConfigError(
            f"{key} ({precision}) needs the package {kind.package}, which is not installed; "
            f"pip install {kind.package}, or set it to bf16"
        )
    if (reason := _why_not(kind.form, device)) is not None:
        works = next((name for name, one in KINDS.items() if _why_not(one.form, device) is None), "bf16")
        raise DeviceError(f"{key} ({precision}) does not work on {device} ({reason}); set it to {works}")

    def quantize(linear: nn.Linear) -> FrozenLinear:
        return QuantizedLinear.made_of(linear, kind.quantize(linear.weight.detach().to(via)), kind.form)

    return quantize


def _why_not(form: Form, device: torch.device) -> str | None:
    """Why a device cannot make a weight of this form dense; None: it can."""
    one = torch.ones(4, 1)
    kept = {"weight": torch.zeros(4, 2, dtype=torch.int8), "scale": one, "shift": one}
    try:
        form({name: tensor.to(device) for name, tensor in kept.items()}, (4, 2))
    # What torch raises for a dtype or an operation that a device lacks.
    except (RuntimeError, TypeError) as error:
        return str(error).partition("\n")[0]
    return None


def _in_pieces(quantize: Callable[[Tensor], dict[str, Tensor]], rows: Tensor) -> dict[str, Tensor]:
    """Quantize rows, each of which is quantized for itself, without large intermediate results."""
    # Two rows at least: quanto takes a single one for a weight with one scale.
    size = max(PIECE_NUMBERS // rows.shape[1], 2)
    whole: dict[str, Tensor] = {}
    start = 0
    for piece in rows.tensor_split(max(len(rows) // size, 1)):
        made = quantize(piece)
        # Made at once, not put together in the end: what is left over would keep the host's memory in shreds.
        whole = whole or {name: one.new_empty((len(rows), *one.shape[1:])) for name, one in made.items()}
        for name, one in made.items():
            whole[name][start : start + len(piece)] = one
        start += len(piece)
    return whole


def _quanto_int8(weight: Tensor) -> dict[str, Tensor]:
    from optimum.quanto import AbsmaxOptimizer, qint8

    def rows(piece: Tensor) -> dict[str, Tensor]:
        scale = AbsmaxOptimizer()(piece, qtype=qint8, axis=0)
        data = torch.ops.quanto.quantize_symmetric(piece, dtype=torch.int8, axis=0, scale=scale)
        return {"weight": data, "scale": scale}

    return _in_pieces(rows, weight)


def _quanto_fp8(weight: Tensor) -> dict[str, Tensor]:
    from optimum.quanto import AbsmaxOptimizer, qfloat8_e4m3fn

    def rows(piece: Tensor) -> dict[str, Tensor]:
        scale = AbsmaxOptimizer()(piece, qtype=qfloat8_e4m3fn, axis=0)
        data = torch.ops.quanto.quantize_symmetric(piece, dtype=torch.float8_e4m3fn, axis=0, scale=scale)
        return {"weight": _bytes_of_fp8(data, scale), "scale": scale}

    return _in_pieces(rows, weight)


def _quanto_int4(weight: Tensor) -> dict[str, Tensor]:
    from optimum.quanto import MaxOptimizer, qint4
    from optimum.quanto.tensor.packed import pack_weights

    def rows(piece: Tensor) -> dict[str, Tensor]:
        scale, shift = MaxOptimizer()(piece, qtype=qint4, axis=0)
        data = torch.ops.quanto.quantize_affine(
            piece, bits=4, axis=0, group_size=None, scale=scale, shift=shift
        )
        return {"weight": data, "scale": scale, "shift": shift}

    made = _in_pieces(rows, weight.reshape(-1, _group_size(weight.shape[1])))
    return made | {"weight": pack_weights(made["weight"], 4).view(torch.int8)}


def _group_size(in_features: int) -> int:
    """How many numbers share a scale, by quanto's rule: 128, 96, 64 or 32 if it divides a longer row."""
    sizes = (size for size in (128, 96, 64, 32) if in_features > 128 and in_features % size == 0)
    return next(sizes, in_features)


def _torchao_int8(weight: Tensor) -> dict[str, Tensor]:
    from torchao.quantization import Int8Tensor, PerRow

    def rows(piece: Tensor) -> dict[str, Tensor]:
        made = Int8Tensor.from_hp(piece, granularity=PerRow())
        return {"weight": made.qdata, "scale": made.scale}

    return _in_pieces(rows, weight)


def _torchao_fp8(weight: Tensor) -> dict[str, Tensor]:
    from torchao.quantization import Float8Tensor, PerRow

    def rows(piece: Tensor) -> dict[str, Tensor]:
        made = Float8Tensor.from_hp(piece, granularity=PerRow())
        return {"weight": _bytes_of_fp8(made.qdata, made.scale), "scale": made.scale}

    return _in_pieces(rows, weight)


def _bytes_of_fp8(data: Tensor, scale: Tensor) -> Tensor:
    """The numbers' bytes; zero in rows of zeros, where both libraries divide zero by zero."""
    return data.view(torch.int8).masked_fill(scale == 0, 0)


KINDS: Mapping[QuantizedPrecision, Kind] = {
    "int8-quanto": Kind("optimum-quanto", "optimum.quanto", _quanto_int8, dense_from_int8),
    "int4-quanto": Kind("optimum-quanto", "optimum.quanto", _quanto_int4, dense_from_int4),
    "fp8-quanto": Kind("optimum-quanto", "optimum.quanto", _quanto_fp8, dense_from_fp8),
    "int8-torchao": Kind("torchao", "torchao", _torchao_int8, dense_from_int8),
    "fp8-torchao": Kind("torchao", "torchao", _torchao_fp8, dense_from_fp8),
}
"""All formats, the ones that work on most devices first."""
