"""From the keys of section lora to the adapter on the model, and every mistake told before weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILES, LoraWeights, write_lora
from longcat_tune.config.lora import LoraSection
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora, lora_alphas, lora_state
from longcat_tune.runs.adapter import build_adapter, plan_adapter
from longcat_tune.runs.transformer import base_weight

SIZES = (4, 4, 32, 2, 2, 8, 4, 16, 16)
NOWHERE = Path("/nowhere")


def small() -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(*SIZES)


def on_meta() -> LongCatVideoTransformer:
    with torch.device("meta"):
        return LongCatVideoTransformer(*SIZES)


def inputs() -> tuple[Tensor, ...]:
    generator = Generator().manual_seed(1)
    return (
        torch.randn(1, 4, 2, 4, 4, generator=generator),
        torch.tensor([900.0]),
        torch.randn(1, 6, 8, generator=generator),
    )


def adapted(folder: Path = NOWHERE, **keys: Any) -> LongCatVideoTransformer:
    plan = plan_adapter(LoraSection(**keys), on_meta(), config_dir=folder)
    model = small()
    build_adapter(model, plan, seed=5, autocast=False, base_weight=base_weight)
    return model


def trained(**keys: Any) -> LoraWeights:
    """An adapter that does something."""
    model = adapted(**keys)
    generator = Generator().manual_seed(3)
    weights = {
        key: weight + 0.2 * torch.randn(weight.shape, generator=generator)
        for key, weight in lora_state(model).items()
    }
    return LoraWeights(weights, lora_alphas(model))


def test_every_key_reaches_the_layers() -> None:
    model = adapted(
        lora_rank=4,
        lora_alpha=2.0,
        lora_dropout=0.25,
        lora_target="attention+ffn",
        lora_rank_pattern={r"blocks\.0\.attn\.qkv": 16},
        use_dora=True,
        use_rslora=True,
    )
    layer = model.get_submodule("blocks.0.attn.qkv")
    assert layer.lora_A["default"].weight.shape == (16, 32)
    assert layer.scaling["default"] == 2.0 / 16**0.5
    assert layer.lora_dropout["default"].p == 0.25
    assert layer.lora_magnitude_vector["default"].weight.requires_grad
    assert len(lora_state(model)) == 3 * 16
    assert model.get_submodule("blocks.1.ffn.w1").scaling["default"] == 1.0


@pytest.mark.parametrize("form", LORA_FILES)
@pytest.mark.parametrize("dora", [False, True])
def test_a_run_starts_as_a_file_of_any_format(tmp_path: Path, form: str, dora: bool) -> None:
    start = trained(lora_rank=3, lora_target="all-linear")
    write_lora(tmp_path / "start.safetensors", start, form)
    expected = small()
    load_lora(expected, start.weights, start.alphas)
    model = adapted(
        tmp_path, lora_rank=4, lora_target="all-linear", use_dora=dora, init_lora=Path("start.safetensors")
    )
    torch.testing.assert_close(model(*inputs()), expected(*inputs()), atol=1e-5, rtol=1e-5)
    assert (model(*inputs()) - small()(*inputs())).abs().max() > 0.05


def test_a_dora_starts_as_a_dora(tmp_path: Path) -> None:
    start = trained(lora_rank=3, use_dora=True)
    write_lora(tmp_path / "start.safetensors", start)
    expected = small()
    load_lora(expected, start.weights, start.alphas)
    model = adapted(lora_rank=3, use_dora=True, init_lora=tmp_path / "start.safetensors")
    torch.testing.assert_close(model(*inputs()), expected(*inputs()), atol=1e-5, rtol=1e-5)


def test_the_seed_decides_the_fresh_matrices() -> None:
    states = [lora_state(adapted(lora_rank=3)) for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"lora_target": ["nothing"]}, ConfigError, "lora_target"),
        ({"lora_rank_pattern": {"nothing": 3}}, ConfigError, "lora_rank_pattern"),
        (
            {"init_lora": Path("absent.safetensors")},
            CheckpointError,
            r"^init_lora \(absent\.safetensors\): LoRA file absent\.safetensors does not exist",
        ),
    ],
)
def test_mistakes_are_told_before_weights_are_loaded(
    keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_adapter(LoraSection(**keys), on_meta(), config_dir=NOWHERE)


def test_a_start_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    write_lora(path, trained(lora_rank=9))
    with pytest.raises(CheckpointError, match=r"^init_lora \(.*\): .* set lora_rank to 9$"):
        adapted(lora_rank=8, init_lora=path)
    write_lora(path, trained(lora_rank=2, use_dora=True))
    with pytest.raises(CheckpointError, match=r"^init_lora .* is a DoRA, .* set use_dora to true"):
        adapted(init_lora=path)
