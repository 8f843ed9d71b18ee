"""Renders with a distilled LoRA and live previews: other pictures, the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, write_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.model.weights import empty_transformer, resolve_checkpoint
from longcat_tune.runs.render_record import read_record
from longcat_tune.runs.train import train
from longcat_tune.runs.validate import validate
from tests.builders import events, make_clips, make_run, video_entry


def write_distilled(path: Path, *, width: int | None = None) -> Path:
    """A LoRA of Meituan's format on attention and feed-forward, strong enough to be seen."""
    model = empty_transformer(resolve_checkpoint(None, flavour="tiny") / "dit")
    generator = torch.Generator().manual_seed(1)
    weights, alphas = {}, {}
    for name in lora_target_modules(model, "attention+ffn"):
        linear = model.get_submodule(name)
        inputs = width or linear.in_features
        weights[f"{name}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) * 0.3
        weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, 2, generator=generator) * 0.3
        alphas[name] = 2.0
    write_lora(path, LoraWeights(weights, alphas), "official")
    return path


def run(folder: Path, **keys: Any) -> RunConfig:
    folder.mkdir()
    clips = make_clips(folder / "clips", 1)
    config = make_run(folder, [video_entry(clips)], **keys)
    train(config, config_dir=folder)
    return config


def test_a_distilled_lora_renders_in_few_steps_and_does_not_touch_the_training(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    distilled = write_distilled(tmp_path / "cfg_step_lora.safetensors")
    fast = run(
        tmp_path / "fast",
        validation_prompt="a",
        validation_step_interval=2,
        validation_lora=str(distilled),
        validation_preview=True,
        validation_preview_steps=8,
    )
    weights = [load_file(config.output.output_dir / LORA_FILE) for config in (plain, fast)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    folder = fast.output.output_dir / "validation" / "step_000002"
    record = read_record(folder)
    assert {"16 steps", "guidance 1"} <= set(record.videos[0].details)
    previews = events(fast, "preview")
    assert [(one["step"], one["denoising_step"]) for one in previews] == [(2, 8), (2, 16)]
    assert {fast.output.output_dir / one["file"] for one in previews} == set(folder.glob("*.preview.png"))


def test_it_is_part_of_what_makes_a_picture(tmp_path: Path) -> None:
    distilled = write_distilled(tmp_path / "a.safetensors")
    pictures = []
    for lora in (str(distilled), None):
        config = make_run(
            tmp_path, [], data_backend_config=None, validation_lora=lora, validation_num_inference_steps=16
        )
        validate(config, config_dir=tmp_path, loras=[], prompts=["a"], image=None)
        [mp4] = (config.output.output_dir / "validation" / "base").glob("*.mp4")
        pictures.append(mp4.read_bytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("lora", "error", "message"),
    [
        ("no.safetensors", ConfigError, r"validation_lora \(no\.safetensors\) is not there \(tried"),
        ("other.safetensors", CheckpointError, r"validation_lora \(.*other\.safetensors\): .*another model"),
    ],
)
def test_one_that_cannot_be_used_is_named(tmp_path: Path, lora: str, error: type, message: str) -> None:
    write_distilled(tmp_path / "other.safetensors", width=24)
    config = make_run(tmp_path, [], data_backend_config=None, validation_prompt="a", validation_lora=lora)
    with pytest.raises(error, match=message):
        validate(config, config_dir=tmp_path, loras=[], prompts=[], image=None)
