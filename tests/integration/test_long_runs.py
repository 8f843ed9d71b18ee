"""What long runs need beside steps: averages, files in every format, changes told, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longcat_tune.checkpoint.lora_file import LORA_FILES, read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError
from longcat_tune.runs.train import train
from tests.builders import events, make_clips, make_run, video_entry

EVERYTHING = {
    "use_ema": True,
    "lora_format": ["peft", "official", "comfyui"],
    "lora_rank_pattern": {r".*\.attn\.qkv": 2},
    "use_rslora": True,
    "lora_plus_ratio": 4.0,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 1,
    "flow_loss_weighting": "bell",
    "flow_min_sigma": 0.2,
    "loss_type": "huber",
}
"""Keys of the training stage that all have an effect together."""


def run(folder: Path, clips: Path, **keys: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    config = make_run(folder, [video_entry(clips)], **keys)
    train(config, config_dir=folder)
    return config


def last_lora(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output.output_dir / LORA_FILES["peft"])


def test_resumed_with_everything_on_equals_one_run_to_the_bit(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    whole = run(tmp_path / "whole", clips, max_train_steps=6, **EVERYTHING)
    # The same course of the learning rate: the run is killed, not planned shorter.
    halves = run(tmp_path / "halves", clips, max_train_steps=6, checkpoint_step_interval=3, **EVERYTHING)
    out = halves.output.output_dir
    for folder in out.glob("checkpoint-000006"):
        folder.rename(tmp_path / "lost")
    run(tmp_path / "halves", clips, max_train_steps=6, checkpoint_step_interval=3, **EVERYTHING)
    assert events(halves, "resume")[0]["step"] == 3
    for name in ("ema.safetensors", *(LORA_FILES[form] for form in EVERYTHING["lora_format"])):
        one, other = (
            load_file(config.output.output_dir / "checkpoint-000006" / name) for config in (whole, halves)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    ranks = read_lora(out).ranks
    assert ranks["blocks.0.attn.qkv"] == 2
    assert ranks["blocks.0.attn.proj"] == 8


def test_the_average_is_rendered_on_request(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    config = run(
        tmp_path, clips, use_ema=True, ema_validation="comparison", validation_prompt="a", learning_rate=1e-2,
        validation_step_interval=2,
    )  # fmt: skip
    folder = config.output.output_dir / "validation" / "step_000002"
    [live] = folder.glob("*.mp4")
    assert live.read_bytes() != (folder / "ema" / live.name).read_bytes()
    assert f"validation/step_000002/ema/{live.name}" in events(config, "validation")[-1]["files"]


def test_a_change_of_what_is_learned_stops_a_resumed_run_unless_accepted(tmp_path: Path, caplog) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    run(tmp_path, clips)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    with pytest.raises(ConfigError) as error:
        run(tmp_path, clips, max_train_steps=3, learning_rate=0.5, flow_schedule_shift=3.0)
    table = "\n  flow_schedule_shift  12.0 -> 3.0\n  learning_rate        0.001 -> 0.5\n"
    assert table in str(error.value)
    assert "--accept_changes" in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")} == before
    with caplog.at_level("INFO"):
        run(tmp_path, clips, max_train_steps=3, learning_rate=0.5, accept_changes=True)
    assert any("learning_rate" in message and "0.001 -> 0.5" in message for message in caplog.messages)


def test_what_is_around_the_learning_may_change(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    run(tmp_path, clips)
    config = run(tmp_path, clips, max_train_steps=3, lora_format=["official"], checkpoint_step_interval=1)
    assert (config.output.output_dir / LORA_FILES["official"]).is_file()


def run_two_processes(
    folder: Path, clips: Path, environment: Mapping[str, str] = os.environ, **keys: Any
) -> RunConfig:
    folder.mkdir()
    config = make_run(folder, [video_entry(clips)], **keys)
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    subprocess.run(
        [*command, "-m", "longcat_tune", "train", "--config", str(folder / "config.json")],
        check=True,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    return config


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 4)
    exact = {"mixed_precision": "no", "base_model_precision": "fp32", "max_train_steps": 3}
    one = run(tmp_path / "one", clips, gradient_accumulation_steps=2, **exact)
    two = run_two_processes(tmp_path / "two", clips, **exact)
    [start] = events(two, "run_start")
    assert start["processes"] == 2
    assert len(events(two, "step")) == 3
    for key, weight in last_lora(one).items():
        torch.testing.assert_close(last_lora(two)[key], weight, rtol=1e-4, atol=1e-7)

    # With the base shared out between them as accelerate launch --use_fsdp asks: the same to the bit.
    fsdp = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    shared = run_two_processes(tmp_path / "shared", clips, {**os.environ, **fsdp}, **exact)
    assert all(torch.equal(last_lora(shared)[key], weight) for key, weight in last_lora(two).items())
