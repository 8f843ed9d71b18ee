"""Config to loaded parts: device, folders, transformer, adapter; in that order, once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from longcat_tune.config.flow import FlowSection
from longcat_tune.config.lora import LoraSection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.training import TrainingSection
from longcat_tune.flow.density import DensityKind, SigmaDensity
from longcat_tune.model.weights import (
    TRANSFORMER,
    empty_transformer,
    local_checkpoint,
    resolve_checkpoint,
    shard_paths,
)
from longcat_tune.runs.adapter import AdapterPlan, plan_adapter
from longcat_tune.training import optimizers, schedules
from longcat_tune.training.interfaces import SameWeights, Weights
from longcat_tune.training.schedule_free import ScheduleFreeWeights

NEEDED = ((TRANSFORMER,), ("vae",), ("text_encoder", "tokenizer"))
"""Folders of a checkpoint that transformer, VAE and text encoder are made from."""


@dataclass(frozen=True, slots=True)
class CheckpointFolders:
    """Where each component's checkpoint is; a component may be taken from another checkpoint.

    Attributes:
        transformer: the folder with the transformer's config.json itself.
        vae: a checkpoint folder that holds `vae`.
        text_encoder: a checkpoint folder that holds `text_encoder` and `tokenizer`.
    """

    transformer: Path
    vae: Path
    text_encoder: Path


def pick_device() -> torch.device:
    """The fastest device here: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def find_checkpoint(model: ModelSection) -> CheckpointFolders:
    """Resolve every component to a local folder, downloading what is named by a hub id.

    Raises:
        CheckpointError: a folder or hub id cannot be had.
    """
    found = [
        resolve_checkpoint(name, flavour=model.model_flavour, components=components)
        for name, components in zip(_names(model), NEEDED, strict=True)
    ]
    return _folders(*found)


def find_local_checkpoint(model: ModelSection) -> CheckpointFolders | None:
    """Resolve every component without asking the network; None when one of them is named by a hub id.

    Raises:
        CheckpointError: a folder is not there.
    """
    found = [local_checkpoint(name, flavour=model.model_flavour) for name in _names(model)]
    here = [folder for folder in found if folder is not None]
    return _folders(*here) if len(here) == len(found) else None


def _names(model: ModelSection) -> tuple[str | None, str | None, str | None]:
    """Where transformer, VAE and text encoder come from; None is the flavour's own."""
    root = model.pretrained_model_name_or_path
    return (
        model.pretrained_transformer_model_name_or_path or root,
        model.pretrained_vae_model_name_or_path or root,
        model.pretrained_text_encoder_model_name_or_path or root,
    )


def _folders(transformer: Path, vae: Path, text_encoder: Path) -> CheckpointFolders:
    inside = transformer / TRANSFORMER
    return CheckpointFolders(inside if inside.is_dir() else transformer, vae, text_encoder)


def require_transformer(
    lora: LoraSection, folder: Path, *, config_dir: Path, starts: bool = True
) -> AdapterPlan:
    """Refuse an incomplete transformer and an adapter that does not fit it, before hours of encoding.

    Args:
        lora: the section.
        folder: the transformer's.
        config_dir: as for `plan_adapter`.
        starts: as for `plan_adapter`.

    Raises:
        ConfigError: as `plan_adapter`.
        CheckpointError: the folder holds no transformer of this kind, or lacks a shard; or as `plan_adapter`.
    """
    shard_paths(folder)
    return plan_adapter(lora, empty_transformer(folder), config_dir=config_dir, starts=starts)


def uses_autocast(model: ModelSection) -> bool:
    """Whether forward passes run in bf16 whatever the weights' dtype."""
    return model.mixed_precision == "bf16"


def compute_context(
    model: ModelSection, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Autocast for every forward pass of a run, so that float32 LoRA weights compute in bf16."""
    if not uses_autocast(model):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def build_optimizer(
    training: TrainingSection,
    parameters: Iterable[Parameter],
    *,
    is_up: Callable[[Parameter], bool] | None = None,
) -> Optimizer:
    """Build the optimizer over the LoRA weights.

    Args:
        training: the section.
        parameters: the trained ones, on their device.
        is_up: tells the B matrices; needed for lora_plus_ratio.

    Raises:
        ConfigError: its library is not installed.
    """
    assert is_up is not None or training.lora_plus_ratio is None
    settings = optimizers.OptimizerSettings(
        training.optimizer,
        learning_rate=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.adam_weight_decay,
        lora_plus_ratio=training.lora_plus_ratio,
    )
    return optimizers.build_optimizer(settings, parameters, is_up=is_up or (lambda _: False))


def loop_weights(training: TrainingSection, optimizer: Optimizer) -> Weights:
    """Tell which weights of an optimizer are stepped and which are saved and rendered."""
    if training.optimizer == "adamw_schedulefree":
        return ScheduleFreeWeights(optimizer)
    return SameWeights()


def build_schedule(
    training: TrainingSection, optimizer: Optimizer, *, max_steps: int, completed_steps: int
) -> schedules.AppliedSchedule:
    """Let the learning rate take its course.

    Args:
        training: the section.
        optimizer: fresh, or with a checkpoint's state.
        max_steps: of the whole run.
        completed_steps: those before a resume.
    """
    schedule = schedules.Schedule(
        training.lr_scheduler,
        warmup_steps=training.lr_warmup_steps,
        total_steps=max_steps,
        end_share=training.lr_end / training.learning_rate,
        num_cycles=training.lr_num_cycles,
        power=training.lr_power,
    )
    return schedules.AppliedSchedule(schedule, optimizer, completed_steps=completed_steps)


def sigma_density(flow: FlowSection) -> SigmaDensity:
    """The training density of noise levels."""
    if flow.flow_use_uniform_schedule:
        kind: DensityKind = "uniform"
    else:
        kind = "beta" if flow.flow_use_beta_schedule else "logit_normal"
    return SigmaDensity(
        kind,
        shift=flow.flow_schedule_shift,
        sigmoid_scale=flow.flow_sigmoid_scale,
        min_sigma=flow.flow_min_sigma,
        max_sigma=flow.flow_max_sigma,
    )


def huber_c(flow: FlowSection) -> float | None:
    """Where the loss turns from a square into a line; None: nowhere."""
    return flow.huber_c if flow.loss_type == "huber" else None
