"""Quantized linear layers: the libraries' own bytes, results of the dense weight, no dense copy kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longcat_tune.errors import ConfigError, DeviceError
from longcat_tune.memory import quantize
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.host_buffer import HostBuffer
from longcat_tune.memory.quantize import KINDS, quantizer
from longcat_tune.memory.quantized import QuantizedLinear
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream
from longcat_tune.model.lora import add_lora

CPU = torch.device("cpu")
PRECISIONS = [
    pytest.param(
        name, marks=pytest.mark.skipif(find_spec(one.library.partition(".")[0]) is None, reason=one.package)
    )
    for name, one in KINDS.items()
]
BYTES = {"int8-quanto": 1, "fp8-quanto": 1, "int4-quanto": 0.5, "int8-torchao": 1, "fp8-torchao": 1}
ERRORS = {
    "int8-quanto": 0.009,
    "fp8-quanto": 0.04,
    "int4-quanto": 0.11,
    "int8-torchao": 0.009,
    "fp8-torchao": 0.04,
}
"""Of a weight of normal numbers, relative, a little above what the bits allow."""


def linear_of(rows: int, columns: int, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(rows + columns)
    return nn.Linear(columns, rows, bias=bias, dtype=dtype)


def quantized(linear: nn.Linear, precision: str) -> FrozenLinear:
    return quantizer(precision, device=CPU, via=CPU, key="base_model_precision")(linear)


def by_the_library(weight: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Bytes and dense weight as the library's own tensor has them."""
    if precision.endswith("torchao"):
        from torchao import quantization as ao

        made: Any
        if precision == "int8-torchao":
            made = ao.Int8Tensor.from_hp(weight, granularity=ao.PerRow())
        else:
            made = ao.Float8Tensor.from_hp(weight, granularity=ao.PerRow())
        return made.qdata, made.dequantize()
    from optimum import quanto

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight
    kind = {"int8-quanto": quanto.qint8, "fp8-quanto": quanto.qfloat8_e4m3fn, "int4-quanto": quanto.qint4}[
        precision
    ]
    size = quanto.QLinear.from_module(layer, weights=kind).weight_group_size
    if precision != "int4-quanto":
        scale = quanto.AbsmaxOptimizer()(weight, qtype=kind, axis=0)
        made = quanto.quantize_weight(weight, qtype=kind, axis=0, scale=scale, optimized=False)
        return made._data, made.dequantize()
    scale, shift = quanto.MaxOptimizer()(weight, qtype=kind, axis=0, group_size=size)
    made = quanto.quantize_weight(
        weight, qtype=kind, axis=0, scale=scale, shift=shift, group_size=size, optimized=False
    )
    # Its own dequantize would compile an extension for a minute; this is the formula there.
    numbers = torch.ops.quanto.quantize_affine(
        weight, bits=4, axis=0, group_size=size, scale=scale, shift=shift
    )
    return made._data._data, (made._scale * numbers - made._shift).reshape(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 256), (7, 160), (9, 100)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_and_dense_weight_are_the_librarys(
    monkeypatch: pytest.MonkeyPatch, precision: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(quantize, "PIECE_NUMBERS", 400)
    linear = linear_of(*shape, dtype)
    layer = quantized(linear, precision)
    kept, dense = by_the_library(linear.weight.detach(), precision)
    assert torch.equal(layer.stored()["weight"], kept.view(torch.int8))
    assert torch.equal(layer.live_weight(), dense)
    assert layer.live_weight().dtype == dtype


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sizes_and_errors_are_those_of_the_format(precision: str) -> None:
    linear = linear_of(256, 512, torch.bfloat16, bias=False)
    layer = quantized(linear, precision)
    stored = sum(tensor.nbytes for tensor in layer.stored().values())
    assert BYTES[precision] <= stored / linear.weight.numel() < BYTES[precision] * 1.1
    error = (layer.live_weight() - linear.weight).float().norm() / linear.weight.float().norm()
    assert error < ERRORS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_and_input_gradients_are_those_of_the_dense_weight(precision: str) -> None:
    layer = quantized(linear_of(24, 64), precision)
    x, same = (
        torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab"
    )
    out, expected = layer(x), F.linear(same, layer.live_weight(), layer.bias)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(x.grad, same.grad)
    assert not any(weight.requires_grad for weight in layer.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_dense_weight_lives_between_forward_and_backward(precision: str) -> None:
    layer = quantized(linear_of(24, 64), precision)
    made: list[weakref.ref[Tensor]] = []
    saved: list[Tensor] = []
    form = layer.form

    def watched(*arguments: Any) -> Tensor:
        dense = form(*arguments)
        made.append(weakref.ref(dense))
        return dense

    layer.form = watched
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda one: one
    ):
        out = layer(x).sin()
    assert [dense() for dense in made] == [None]
    assert all(tensor.shape == out.shape for tensor in saved)
    out.sum().backward()
    assert [dense() for dense in made] == [None, None]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_zeros_stay_zero(precision: str) -> None:
    linear = linear_of(8, 256, torch.bfloat16)
    linear.weight.data[3] = 0
    dense = quantized(linear, precision).live_weight()
    assert torch.equal(dense[3], torch.zeros(256, dtype=torch.bfloat16))
    assert dense.isfinite().all()


def test_a_module_that_changes_its_dtype_leaves_the_bytes_alone() -> None:
    for precision in ("int8-quanto", "fp8-quanto", "int4-quanto"):
        layer = quantized(linear_of(8, 256), precision)
        kept = layer.stored()["weight"].clone()
        layer.to(torch.bfloat16)
        assert torch.equal(layer.stored()["weight"], kept)
        assert layer.live_weight().shape == (8, 256)


def test_layers_that_compute_in_float32_are_not_quantized() -> None:
    class Exact(nn.Linear):
        pass

    module = nn.Sequential(Exact(8, 8), nn.Linear(8, 8))
    make = quantizer("int8-quanto", device=CPU, via=CPU, key="base_model_precision")
    exact, other = freeze_linears(module, in_float32=(Exact,), quantize=make)
    assert not isinstance(exact, QuantizedLinear)
    assert exact.in_float32
    assert isinstance(other, QuantizedLinear)
    assert list(module) == [exact, other]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.sin(self.up(x)))


def quantized_blocks(
    precision: str, *, prepare: Callable[[nn.ModuleList], object]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of quantized blocks with a LoRA, however they are kept."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(64) for _ in range(4))
    freeze_linears(blocks, quantize=quantizer(precision, device=CPU, via=CPU, key="base_model_precision"))
    prepare(blocks)
    names = [f"{number}.{name}" for number in range(4) for name in ("up", "down")]
    add_lora(blocks, targets=names, rank=4, alpha=4.0, generator=torch.Generator().manual_seed(2))
    trained = {name: weight for name, weight in blocks.named_parameters() if weight.requires_grad}
    for name, weight in trained.items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(3))
    x = torch.randn(2, 7, 64)
    for block in blocks:
        x = block(x)
    loss = x.square().mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in trained.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_train_to_the_bit_alike_when_their_weights_come_from_elsewhere(precision: str) -> None:
    buffers: list[HostBuffer] = []

    def from_a_buffer(blocks: nn.ModuleList) -> None:
        layers = [one for one in blocks.modules() if isinstance(one, FrozenLinear)]
        buffer = HostBuffer.holding([layer.stored() for layer in layers], pinned=False)
        for layer, kept, copied in zip(
            layers, buffer.tensors(), buffer.views(buffer.memory.clone()), strict=True
        ):
            layer.keep({name: torch.full_like(tensor, 77) for name, tensor in kept.items()})
            layer.fetch = lambda _, layer=layer, copied=copied: layer.use(copied)
        buffers.append(buffer)

    resident = quantized_blocks(precision, prepare=lambda _: None)
    fetched = quantized_blocks(precision, prepare=from_a_buffer)
    assert torch.equal(resident[0], fetched[0])
    assert resident[1].keys() == fetched[1].keys()
    assert len(resident[1]) == 16
    for name, gradient in resident[1].items():
        assert torch.equal(gradient, fetched[1][name]), name
    # What travels are the quantized bytes: four blocks of 2 x 64 x 128 numbers are 256 KiB in float32.
    assert buffers[0].num_bytes < 4 * 2 * 64 * 128 * 4 * 0.4


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"group": 3}, {"by_layer": True}], ids=str)
def test_streamed_quantized_blocks_train_to_the_bit_like_resident_ones(
    precision: str, options: dict[str, Any]
) -> None:
    stream = BlockStream(device=CPU, **options)

    def streamed(blocks: nn.ModuleList) -> None:
        for block in blocks:
            stream.add(block)
        enable_recompute(blocks)

    resident, ours = (
        quantized_blocks(precision, prepare=enable_recompute),
        quantized_blocks(precision, prepare=streamed),
    )
    assert torch.equal(resident[0], ours[0])
    for name, gradient in resident[1].items():
        assert torch.equal(gradient, ours[1][name]), name
    assert stream.counts.fetches > 0


@pytest.mark.parametrize("precision", ["int8-quanto", "int4-quanto", "fp8-quanto"])
def test_nothing_can_be_merged_into_a_quantized_layer(precision: str) -> None:
    module = nn.Sequential(nn.Linear(64, 8))
    freeze_linears(module, quantize=quantizer(precision, device=CPU, via=CPU, key="base_model_precision"))
    before = module[0].stored()["weight"].clone()
    add_lora(module, targets=["0"], rank=2, alpha=2.0, generator=torch.Generator().manual_seed(0))
    nn.init.ones_(module[0].lora_B["default"].weight)
    with pytest.raises(RuntimeError):
        module[0].merge()
    assert torch.equal(module[0].get_base_layer().stored()["weight"], before)


def test_a_device_without_a_format_is_told_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> Tensor:
        raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend\nbut it does not have support")

    kind = KINDS["fp8-quanto"]
    broken = quantize.Kind(kind.package, kind.library, kind.quantize, lacking)
    monkeypatch.setattr(quantize, "KINDS", {**KINDS, "fp8-quanto": broken})
    with pytest.raises(DeviceError) as error:
        quantizer("fp8-quanto", device=CPU, via=CPU, key="base_model_precision")
    assert str(error.value) == (
        "base_model_precision (fp8-quanto) does not work on cpu (Trying to convert Float8_e4m3fn to the MPS "
        "backend); set it to int8-quanto"
    )


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"text_encoder_1_precision \(int8-torchao\) needs the package torchao"
    ):
        quantizer("int8-torchao", device=CPU, via=CPU, key="text_encoder_1_precision")
