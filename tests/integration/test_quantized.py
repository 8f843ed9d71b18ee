"""A run on a quantized base: it trains, and renders with its LoRA; a DoRA works on it, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.cli import main
from longcat_tune.config.model import ModelSection
from longcat_tune.model.lora import add_lora, add_magnitudes, load_lora_state, lora_state
from longcat_tune.runs.precision import base_weights
from longcat_tune.runs.train import train
from longcat_tune.runs.transformer import base_weight
from tests.builders import make_clips, make_run, video_entry

KEYS = {"base_model_precision": "int8-quanto", "text_encoder_1_precision": "int8-quanto", "lora_rank": 4}


def test_a_run_on_a_quantized_base_trains_and_its_lora_renders(tmp_path: Path) -> None:
    config = make_run(tmp_path, [video_entry(make_clips(tmp_path / "clips", 1))], **KEYS)
    train(config, config_dir=tmp_path)
    lora = config.output.output_dir / LORA_FILE
    assert any(bool(weight.any()) for name, weight in load_file(lora).items() if "lora_B" in name)

    words = ["validate", "--config", str(tmp_path / "config.json"), "--prompt", "a red circle"]
    assert main([*words, "--lora", str(lora)]) == 0
    assert list((config.output.output_dir / "validation").rglob("*.mp4"))


def with_dora(module: nn.Module) -> nn.Module:
    add_lora(module, targets=["0"], rank=4, alpha=4.0, generator=Generator().manual_seed(0))
    add_magnitudes(module, base_weight=base_weight)
    return module


@pytest.mark.parametrize("precision", ["int8-quanto", "int4-quanto", "fp8-quanto"])
def test_a_dora_on_a_quantized_layer_is_one_on_the_dense_weight(precision: str) -> None:
    torch.manual_seed(0)
    weights = base_weights(ModelSection(base_model_precision=precision), torch.device("cpu"))
    quantized, dense = nn.Sequential(nn.Linear(64, 24)), nn.Sequential(nn.Linear(64, 24))
    dense.load_state_dict(quantized.state_dict())
    [layer] = weights.freeze(quantized)
    dense[0].weight.data = layer.live_weight()
    x = torch.randn(5, 64)
    plain = dense(x)
    given, expected = with_dora(quantized), with_dora(dense)
    assert torch.allclose(given(x), plain, atol=1e-5)
    moved = {name: other_than(weight) for name, weight in lora_state(given).items()}
    for module in (given, expected):
        load_lora_state(module, moved)
    assert torch.allclose(given(x), expected(x), atol=1e-5)
    assert not torch.allclose(given(x), plain, atol=1e-2)


def other_than(weight: Tensor) -> Tensor:
    return weight + 0.1 * torch.randn(weight.shape, generator=Generator().manual_seed(1))
