"""What launchers ask for by the environment is honoured or refused, never passed over."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from longcat_tune.config.load import load_run_config
from longcat_tune.errors import ConfigError
from longcat_tune.runs.launch import (
    build_accelerator,
    require_launch,
    require_plain_base,
    require_shardable,
)
from longcat_tune.runs.preflight import preflight
from tests.builders import make_clips, make_run, video_entry


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_MIXED_PRECISION": "fp16"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "RANK": "0"},
        {"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_torchrun_and_plain_launches_pass(environment: dict[str, str]) -> None:
    require_launch(environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            r"ACCELERATE_USE_DEEPSPEED \(true\) asks for DeepSpeed, .*musubi_blocks_to_swap",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "context, tensor or sequence parallelism"),
        ({"ACCELERATE_USE_FSDP": "true"}, r"FSDP_VERSION \(1\) must be 2.*--fsdp_version 2"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "starts one process on the CPU.*torchrun",
        ),
    ],
)
def test_an_engine_that_is_not_used_is_refused_with_a_remedy(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_launch(environment)


def test_every_process_loads_its_encoders_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # As accelerate launch --use_fsdp sets it by default; transformers reads it.
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    build_accelerator()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_what_a_shared_out_base_cannot_do_is_refused() -> None:
    require_shardable(renders=False, dora=False, keeps_base=False)
    with pytest.raises(ConfigError, match="cannot render"):
        require_shardable(renders=True, dora=False, keeps_base=False)
    with pytest.raises(ConfigError, match="use_dora"):
        require_shardable(renders=False, dora=True, keeps_base=False)
    with pytest.raises(ConfigError, match="is_regularisation_data"):
        require_shardable(renders=False, dora=False, keeps_base=True)


def test_the_remedy_against_renders_ends_all_of_them() -> None:
    with pytest.raises(ConfigError) as refused:
        require_shardable(renders=True, dora=False, keeps_base=False)
    remedy = dict(re.findall(r"(validation_\w+) to (\w+)", str(refused.value)))
    rendering = {"validation_epoch_interval": "1", "validation_prompt": "a"}
    assert load_run_config(None, rendering).validation.renders_in_training
    assert not load_run_config(None, rendering | remedy).validation.renders_in_training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"musubi_blocks_to_swap": "8"}, r"musubi_blocks_to_swap \(8\) .*shared out.*; set it to 0, or"),
        ({"enable_group_offload": "true"}, r"enable_group_offload \(true\) .*; set it to false, or"),
        ({"base_model_precision": "int8-quanto"}, r"base_model_precision \(int8-quanto\) .*set it to bf16"),
    ],
)
def test_a_shared_out_base_is_neither_streamed_nor_quantized(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    config = load_run_config(None, given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_plain_base(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    require_plain_base(load_run_config(None, {"base_model_precision": "fp32"}))
    with pytest.raises(ConfigError, match=message):
        require_plain_base(config)
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_plain_base(config)


def test_that_is_told_in_the_preflight_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = video_entry(make_clips(tmp_path / "clips", 2))
    config = make_run(tmp_path, [entry], musubi_blocks_to_swap=2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    [error] = preflight(config, config_dir=tmp_path, trains=True).errors
    assert str(error).startswith("musubi_blocks_to_swap (2) cannot be used on a base that is shared out")
