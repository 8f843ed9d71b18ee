"""Each key arrives where it works: nothing is accepted and ignored on the way from config to parts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from longcat_tune.config.flow import FlowSection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.training import TrainingSection
from longcat_tune.runs.build import (
    build_optimizer,
    build_schedule,
    compute_context,
    find_checkpoint,
    huber_c,
    loop_weights,
    require_transformer,
    sigma_density,
)
from longcat_tune.runs.parts import model_with_adapter
from longcat_tune.training.interfaces import SameWeights
from longcat_tune.training.optimizers import OptimizerName
from longcat_tune.training.schedule_free import ScheduleFreeWeights
from tests.builders import make_run

CPU = torch.device("cpu")
TINY = {"model_flavour": "tiny"}


def test_the_optimizer_gets_its_numbers() -> None:
    training = TrainingSection(
        learning_rate=0.5, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=1e-3, adam_weight_decay=0.25
    )
    [group] = build_optimizer(training, [nn.Parameter(torch.zeros(1, 1))]).param_groups
    names = ("lr", "betas", "eps", "weight_decay")
    assert [group[name] for name in names] == [0.5, (0.7, 0.8), 1e-3, 0.25]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "logit_normal"),
        ({"flow_use_uniform_schedule": True}, "uniform"),
        ({"flow_use_beta_schedule": True}, "beta"),
    ],
)
def test_the_density_gets_its_kind_shift_and_scale(keys: dict[str, bool], kind: str) -> None:
    density = sigma_density(FlowSection(flow_schedule_shift=3.0, flow_sigmoid_scale=0.5, **keys))
    assert (density.kind, density.shift, density.sigmoid_scale) == (kind, 3.0, 0.5)


def test_the_density_gets_its_window_and_the_loss_its_shape() -> None:
    density = sigma_density(FlowSection(flow_min_sigma=0.2, flow_max_sigma=0.7))
    assert (density.min_sigma, density.max_sigma) == (0.2, 0.7)
    assert huber_c(FlowSection(huber_c=0.3)) is None
    assert huber_c(FlowSection(loss_type="huber", huber_c=0.3)) == 0.3


def test_b_matrices_get_their_rate() -> None:
    down, up = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3, 2))
    training = TrainingSection(learning_rate=1e-3, lora_plus_ratio=8)
    groups = build_optimizer(training, [down, up], is_up=lambda one: one is up).param_groups
    assert [(group["lr"], group["params"][0] is up) for group in groups] == [(1e-3, False), (8e-3, True)]


def test_every_optimizer_of_the_schema_is_built() -> None:
    assert set(get_args(TrainingSection.model_fields["optimizer"].annotation)) == set(get_args(OptimizerName))


def test_the_schedule_gets_its_numbers() -> None:
    optimizer = build_optimizer(TrainingSection(learning_rate=1e-3), [nn.Parameter(torch.zeros(1))])
    training = TrainingSection(
        learning_rate=1e-3, lr_scheduler="polynomial", lr_end=1e-4, lr_power=2.0, lr_warmup_steps=2
    )
    build_schedule(training, optimizer, max_steps=10, completed_steps=5)
    # The sixth step, half way from the second to the tenth.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 + 9e-4 * 0.25)
    training = TrainingSection(
        learning_rate=1e-3, lr_scheduler="cosine_with_restarts", lr_num_cycles=2, lr_end=0
    )
    optimizer = build_optimizer(training, [nn.Parameter(torch.zeros(1))])
    build_schedule(training, optimizer, max_steps=9, completed_steps=2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_only_schedule_free_has_two_sets_of_weights() -> None:
    for name, kind in (("adamw", SameWeights), ("adamw_schedulefree", ScheduleFreeWeights)):
        training = TrainingSection(optimizer=name)
        optimizer = build_optimizer(training, [nn.Parameter(torch.zeros(1))])
        assert isinstance(loop_weights(training, optimizer), kind)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_mixed_precision_decides_what_linear_layers_compute_in(precision: str, dtype: torch.dtype) -> None:
    with compute_context(ModelSection(**TINY, mixed_precision=precision), CPU)():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("keys", "recomputed"),
    [
        ({}, [True, True, True, True]),
        ({"gradient_checkpointing_interval": 2}, [True, False, True, False]),
        ({"gradient_checkpointing": False}, [False, False, False, False]),
    ],
)
def test_the_adapter_and_recomputation(tmp_path: Path, keys: dict, recomputed: list[bool]) -> None:
    config = make_run(
        tmp_path, [], lora_rank=4, lora_alpha=2, lora_dropout=0.3, lora_target="attention+ffn", **keys
    )
    folder = find_checkpoint(config.model).transformer
    adapter = require_transformer(config.lora, folder, config_dir=tmp_path)
    model = model_with_adapter(config, folder, adapter, device=CPU)
    assert ["forward" in vars(block) for block in model.blocks] == recomputed
    layer = model.blocks[3].ffn.w2
    assert (layer.r["default"], layer.lora_alpha["default"]) == (4, 2)
    assert layer.lora_dropout["default"].p == 0.3
    assert layer.lora_A["default"].weight.dtype == torch.float32


def test_parts_of_another_checkpoint_are_taken_from_there(tmp_path: Path) -> None:
    (tmp_path / "whole" / "dit").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    whole = find_checkpoint(
        ModelSection(
            **TINY,
            pretrained_model_name_or_path=str(tmp_path / "whole"),
            pretrained_vae_model_name_or_path=str(tmp_path / "bare"),
        )
    )
    assert whole.transformer == tmp_path / "whole" / "dit"
    assert (whole.vae, whole.text_encoder) == (tmp_path / "bare", tmp_path / "whole")
    bare = find_checkpoint(
        ModelSection(**TINY, pretrained_transformer_model_name_or_path=str(tmp_path / "bare"))
    )
    assert bare.transformer == tmp_path / "bare"
