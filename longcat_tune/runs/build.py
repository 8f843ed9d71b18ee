"""Config to loaded parts: device, folders, transformer, adapter; in that order, once per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from longcat_tune.config.flow import FlowSection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.training import TrainingSection
from longcat_tune.flow.density import DensityKind, SigmaDensity
from longcat_tune.model.attention import ATTENTION_FUNCTIONS
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.weights import TRANSFORMER, load_transformer, resolve_checkpoint
from longcat_tune.training.optimizers import ScheduleName, build_adamw

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    flavour = model.model_flavour
    override = model.pretrained_transformer_model_name_or_path
    root = model.pretrained_model_name_or_path
    transformer = resolve_checkpoint(override or root, flavour=flavour)
    return CheckpointFolders(
        transformer=transformer / TRANSFORMER if (transformer / TRANSFORMER).is_dir() else transformer,
        vae=resolve_checkpoint(model.pretrained_vae_model_name_or_path or root, flavour=flavour),
        text_encoder=resolve_checkpoint(
            model.pretrained_text_encoder_model_name_or_path or root, flavour=flavour
        ),
    )


def build_transformer(model: ModelSection, folder: Path, *, device: torch.device) -> LongCatVideoTransformer:
    """Load the frozen base."""
    return load_transformer(
        folder,
        dtype=DTYPES[model.base_model_precision],
        device=device,
        attend=ATTENTION_FUNCTIONS[model.attention_implementation],
    )


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


def build_optimizer(training: TrainingSection, parameters: Sequence[Parameter]) -> Optimizer:
    """AdamW over the LoRA weights."""
    return build_adamw(
        parameters,
        learning_rate=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.adam_weight_decay,
    )


def schedule_name(training: TrainingSection) -> ScheduleName:
    """The schedule's name; the schema refuses those that are not built yet."""
    if training.lr_scheduler == "constant":
        return "constant"
    assert training.lr_scheduler == "constant_with_warmup"
    return "constant_with_warmup"


def sigma_density(flow: FlowSection) -> SigmaDensity:
    """The training density of noise levels."""
    if flow.flow_use_uniform_schedule:
        kind: DensityKind = "uniform"
    else:
        kind = "beta" if flow.flow_use_beta_schedule else "logit_normal"
    return SigmaDensity(kind, shift=flow.flow_schedule_shift, sigmoid_scale=flow.flow_sigmoid_scale)
