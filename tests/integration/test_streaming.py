"""Where weights and activations lie changes nothing of a run: its LoRA, its losses and its renders stay."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.config.run import RunConfig
from longcat_tune.runs.train import train
from longcat_tune.runs.validate import validate
from tests.builders import events, make_clips, make_run, video_entry

EVERYTHING = {
    "lora_target": "all-linear",
    "lora_dropout": 0.2,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
    "validation_prompt": "a red circle moves right",
    "validation_step_interval": 2,
    "checkpoint_step_interval": 1,
}
"""Keys of a run in which everything happens that uses the base's weights."""

SOME_BLOCKS = {"musubi_blocks_to_swap": 3, "gradient_checkpointing_offload": True}
STEPS = 30
GROUPS = {"enable_group_offload": True, "group_offload_blocks_per_group": 3}
LAYERS_ON_THE_DISK = {
    "enable_group_offload": True,
    "group_offload_type": "leaf_level",
    "group_offload_use_stream": False,
    "gradient_checkpointing_interval": 2,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"), 1)


@pytest.fixture(scope="module")
def resident(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return ran(tmp_path_factory.mktemp("resident"), clips)


def ran(folder: Path, clips: Path, **keys: Any) -> RunConfig:
    """A run of two steps that is measured on its own clip."""
    datasets = [
        video_entry(clips),
        video_entry(clips, id="known", is_regularisation_data=True),
        video_entry(clips, id="held-out", dataset_type="eval"),
    ]
    config = make_run(folder, datasets, **(EVERYTHING | keys))
    train(config, config_dir=folder)
    return config


def unmeasured(config: RunConfig, name: str) -> list[dict[str, Any]]:
    """What a run has told, without what a clock or the machine decides."""
    measured = {"time", "seconds", "memory_gib"}
    return [
        {key: value for key, value in event.items() if key not in measured} for event in events(config, name)
    ]


def assert_same_run(one: RunConfig, other: RunConfig) -> None:
    mine, theirs = one.output.output_dir, other.output.output_dir
    for file in (LORA_FILE, f"checkpoint-000001/{LORA_FILE}", f"checkpoint-000002/ema/{LORA_FILE}"):
        ours, expected = load_file(mine / file), load_file(theirs / file)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert unmeasured(one, "step") == unmeasured(other, "step")
    assert len(unmeasured(other, "evaluation")) >= 2
    assert [e for e in unmeasured(one, "evaluation") if e["step"]] == [
        e for e in unmeasured(other, "evaluation") if e["step"]
    ]
    [ours], [expected] = (renders(config, "step_000002") for config in (one, other))
    assert ours.read_bytes() == expected.read_bytes()


def renders(config: RunConfig, folder: str) -> list[Path]:
    return sorted((config.output.output_dir / "validation" / folder).rglob("*.mp4"))


def test_layers_streamed_from_the_disk_give_the_resident_run_to_the_bit(
    tmp_path: Path, clips: Path, resident: RunConfig
) -> None:
    disk = {"group_offload_to_disk_path": str(tmp_path / "weights")}
    assert_same_run(ran(tmp_path, clips, **LAYERS_ON_THE_DISK, **disk), resident)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_run_goes_on_with_blocks_and_their_inputs_elsewhere(
    tmp_path: Path, clips: Path, resident: RunConfig
) -> None:
    go = partial(ran, tmp_path, clips)
    go(max_train_steps=1)
    assert_same_run(go(**SOME_BLOCKS), resident)


def test_validate_renders_the_same_with_groups_of_blocks(
    tmp_path: Path, clips: Path, resident: RunConfig
) -> None:
    config = make_run(tmp_path, [], data_backend_config=None, **(EVERYTHING | GROUPS))
    lora = resident.output.output_dir / LORA_FILE
    validate(config, config_dir=tmp_path, loras=[(lora, 1.0)], prompts=[], image=None)
    [expected] = renders(resident, "step_000002")
    [ours] = (config.output.output_dir / "validation").rglob("*.mp4")
    assert ours.read_bytes() == expected.read_bytes()


def test_int8_with_every_block_streamed_learns_what_bf16_does(tmp_path: Path, clips: Path) -> None:
    pytest.importorskip("optimum.quanto")
    losses = []
    for name, keys in {
        "bf16": {},
        "int8": {"base_model_precision": "int8-quanto", **GROUPS, "gradient_checkpointing_offload": True},
    }.items():
        (tmp_path / name).mkdir()
        config = ran(
            tmp_path / name,
            clips,
            max_train_steps=STEPS,
            learning_rate=1e-3,
            validation_step_interval=0,
            checkpoint_step_interval=STEPS,
            lora_dropout=0.0,
            gradient_accumulation_steps=1,
            caption_dropout_probability=0,
            **keys,
        )
        losses.append([event["loss"] for event in unmeasured(config, "evaluation")])
    (before, after), (_, streamed) = losses
    assert after < 0.9 * before
    assert streamed == pytest.approx(after, rel=0.02)
