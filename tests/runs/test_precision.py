"""How frozen weights are held: what the precision keys ask for, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from longcat_tune.config.model import ModelSection
from longcat_tune.memory import quantize
from longcat_tune.memory.quantized import QuantizedLinear
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.runs.precision import base_weights, text_encoder_weights
from longcat_tune.runs.preflight import preflight
from tests.builders import make_clips, make_run, video_entry

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dense_weights_are_read_in_their_own_dtype(precision: str, dtype: torch.dtype) -> None:
    weights = base_weights(ModelSection(base_model_precision=precision), CPU)
    assert (weights.dtype, weights.quantize) == (dtype, None)


def test_base_and_text_encoder_have_keys_of_their_own() -> None:
    section = ModelSection(base_model_precision="fp32", text_encoder_1_precision="int8-quanto")
    assert base_weights(section, CPU).quantize is None
    assert text_encoder_weights(section, CPU).quantize is not None


def test_only_layers_that_compute_in_the_weights_dtype_are_quantized() -> None:
    weights = base_weights(ModelSection(base_model_precision="int8-quanto"), CPU)
    module = nn.ModuleDict({"qkv": nn.Linear(8, 8), "modulation": Float32Linear(8, 8)}).to(weights.dtype)
    weights.freeze(module)
    assert isinstance(module["qkv"], QuantizedLinear)
    assert not isinstance(module["modulation"], QuantizedLinear)
    assert module["modulation"].weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("via", "device"), [("cpu", CPU), ("accelerator", META)])
def test_quantize_via_says_where_a_layer_is_quantized(
    monkeypatch: pytest.MonkeyPatch, via: str, device: torch.device
) -> None:
    seen: list[torch.device] = []
    kind = quantize.KINDS["int8-quanto"]

    def recorded(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(weight.device)
        return kind.quantize(torch.zeros(weight.shape))

    watched = quantize.Kind(kind.package, kind.library, recorded, kind.form)
    monkeypatch.setattr(quantize, "KINDS", {"int8-quanto": watched})
    section = ModelSection(base_model_precision="int8-quanto", quantize_via=via)
    quantizer = base_weights(section, META).quantize
    assert quantizer is not None
    quantizer(nn.Linear(4, 4))
    assert seen == [device]


def test_a_format_that_cannot_be_is_told_with_everything_else_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    config = make_run(
        tmp_path,
        [video_entry(make_clips(tmp_path / "clips", 1))],
        base_model_precision="int8-quanto",
        text_encoder_1_precision="fp8-torchao",
    )
    both = [str(error) for error in preflight(config, config_dir=tmp_path, trains=True).errors]
    assert [message.split(" needs the package ")[0] for message in both] == [
        "text_encoder_1_precision (fp8-torchao)",
        "base_model_precision (int8-quanto)",
    ]
    assert len(preflight(config, config_dir=tmp_path, trains=False).errors) == 1
