"""LoRAs that work in renders only, as the distilled one that needs 16 steps; else they rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

from longcat_tune.checkpoint.lora_file import lora_file, read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.identity import file_hash
from longcat_tune.model.lora import load_lora, lora_lent, rest_lora
from longcat_tune.runs.build import uses_autocast
from longcat_tune.runs.render_lora_check import render_lora_named
from longcat_tune.runs.transformer import base_weight


def render_lora_identity(path: Path) -> str:
    """Name it by its content."""
    return file_hash(lora_file(path))


def attach_render_lora(
    config: RunConfig,
    model: LongCatVideoTransformer,
    path: Path,
    *,
    key: str,
    device: torch.device,
) -> Callable[[], AbstractContextManager[None]]:
    """Add a LoRA to the model, resting in host memory.

    Args:
        config: the run.
        model: with the adapter that is trained, if any.
        path: of the LoRA, of any known format.
        key: of the config that names it; its name on the model, too.
        device: where the model computes.

    Returns:
        What lends it to the model for a while.

    Raises:
        CheckpointError: the file is damaged, or made for another model.
    """
    autocast = uses_autocast(config.model)
    with render_lora_named(key, path):
        lora = read_lora(path)
        load_lora(model, lora.weights, lora.alphas, adapter=key, autocast=autocast, base_weight=base_weight)
    # Under autocast it computes in bf16 anyway.
    rest_lora(model, adapter=key, dtype=torch.bfloat16 if autocast else torch.float32)
    return partial(lora_lent, model, adapter=key, device=device)
