"""The sizes that a memory plan is made from: of model, adapter, batches and renders; loads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from longcat_tune.checkpoint.lora_file import lora_file
from longcat_tune.checkpoint.lora_reader import open_lora
from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig
from longcat_tune.config.training import TrainingSection
from longcat_tune.errors import CheckpointError
from longcat_tune.memory.budget_parts import (
    BASE_WIDTH,
    RELEASED_TEXT_ENCODER,
    RELEASED_VAE_PARAMETERS,
    TextEncoderSize,
    VaeSize,
)
from longcat_tune.memory.budget_renders import NO_LORA, LentLora
from longcat_tune.memory.budget_shape import BF16, FLOAT32, ModelShape
from longcat_tune.memory.budget_training import AdapterSize, Placement
from longcat_tune.model.block_sparse.settings import BlockSparseSettings, read_block_sparse_settings
from longcat_tune.model.weights import read_transformer_config
from longcat_tune.runs.adapter import AdapterPlan
from longcat_tune.runs.build import CheckpointFolders, uses_autocast
from longcat_tune.runs.launch import asks_to_share
from longcat_tune.runs.memory_renders import RenderSize
from longcat_tune.runs.paths import existing_path
from longcat_tune.runs.plan import RunPlan
from longcat_tune.runs.steps import launched_processes
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import Bucket

STATE_BYTES = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "adafactor": 0.1,
    "prodigy": 16.0,
    "adamw_schedulefree": 8.0,
    "muon": 4.0,
}
"""Of an optimizer's state, per parameter. Measured on each library's; adafactor's is a row and a column of
every matrix."""

PRECISION_BYTES = {"bf16": 2.0, "fp32": 4.0, "int4-quanto": 0.5 + 2 * 2 / 128}
"""Per parameter of the text encoder; the 8-bit ones: 1, and a scale per row that does not count."""


@dataclass(frozen=True, slots=True)
class RunSizes:
    """Of everything that a run has in memory at some time.

    Attributes:
        shape: of the transformer.
        adapter: what is trained.
        batch_size: clips of a micro batch.
        micro_batches: of an optimizer step, in one process.
        trained: buckets that are trained on.
        held_out: buckets that the loss is measured on.
        rendered: kinds of renders.
        encoded: sizes that the VAE encodes.
        vae: its size.
        text_encoder: its size.
        released: whether the released model's sizes stand for a checkpoint that is not here yet.
        sparse_share: of the pairs of video tokens that block-sparse attention keeps.
        render_lora: what works while renders are denoised.
        refinement_lora: what refines them; None: they stay as they are.
    """

    shape: ModelShape
    adapter: AdapterSize
    batch_size: int
    micro_batches: int
    trained: tuple[Bucket, ...]
    held_out: tuple[Bucket, ...]
    rendered: tuple[RenderSize, ...]
    encoded: tuple[Bucket, ...]
    vae: VaeSize
    text_encoder: TextEncoderSize
    released: bool
    sparse_share: float = 1 / 16
    render_lora: LentLora = NO_LORA
    refinement_lora: LentLora | None = None


def run_sizes(
    config: RunConfig,
    plan: RunPlan,
    requests: Sequence[RenderRequest],
    checkpoint: CheckpointFolders | None,
    adapter: AdapterPlan | None,
    *,
    config_dir: Path,
) -> RunSizes:
    """Collect the sizes of a run.

    Args:
        config: the run.
        plan: of its clips.
        requests: what it renders.
        checkpoint: where the weights are; None: not here yet, then the released model's sizes are taken.
        adapter: what it trains; None: nothing.
        config_dir: where relative paths of the config start.

    Raises:
        ConfigError: a LoRA of the renders is not there.
        CheckpointError: a component's config or weights, or such a LoRA, cannot be read.
    """
    shape = (
        ModelShape() if checkpoint is None else ModelShape.of(read_transformer_config(checkpoint.transformer))
    )
    trained = sorted({bucket for dataset in plan.training for bucket in dataset.bucket_uses})
    held_out = sorted({bucket for dataset in plan.held_out for bucket in dataset.bucket_uses})
    rendered = sorted({RenderSize.of(request) for request in requests})
    flat = config.flat()
    lent = {
        key: _lent_lora(existing_path(Path(flat[key]), key=key, config_dir=config_dir), config.model)
        for key in ("validation_lora", "validation_refinement_lora")
        if flat[key] is not None
    }
    return RunSizes(
        shape=shape,
        adapter=adapter_size(shape, adapter, config.training),
        batch_size=config.training.train_batch_size,
        micro_batches=config.training.gradient_accumulation_steps,
        trained=tuple(trained) if adapter is not None else (),
        held_out=tuple(held_out),
        rendered=tuple(rendered),
        encoded=(*trained, *held_out),
        vae=_vae_size(config.model, checkpoint),
        text_encoder=_text_encoder_size(config.model, checkpoint),
        released=checkpoint is None,
        sparse_share=_sparse_share(checkpoint),
        render_lora=lent.get("validation_lora", NO_LORA),
        refinement_lora=lent.get("validation_refinement_lora"),
    )


def placement_of(config: RunConfig, depth: int) -> Placement:
    """Where the keys of a config put weights and activations.

    Args:
        config: the run.
        depth: blocks of the model.
    """
    memory, training = config.memory, config.training
    whole = memory.enable_group_offload
    return Placement(
        streamed_blocks=depth if whole else min(memory.musubi_blocks_to_swap, depth),
        blocks_per_group=memory.group_offload_blocks_per_group if whole else 1,
        slots=1 if whole and not memory.group_offload_use_stream else 2,
        by_layer=whole and memory.group_offload_type == "leaf_level",
        boundaries_on_host=training.gradient_checkpointing_offload,
        ffn_chunk_tokens=memory.feed_forward_chunk_size,
        recompute_every=(
            training.gradient_checkpointing_interval if training.gradient_checkpointing else None
        ),
        on_disk=whole and memory.group_offload_to_disk_path is not None,
        sharing=launched_processes() if asks_to_share() else 1,
    )


def adapter_size(shape: ModelShape, plan: AdapterPlan | None, training: TrainingSection) -> AdapterSize:
    """What is trained, in numbers.

    Args:
        shape: of the transformer.
        plan: of the adapter; None: nothing is trained.
        training: the section; its optimizer has a state.
    """
    if plan is None:
        return AdapterSize(0, in_attention=False, in_ffn=False, state_bytes=0.0, averaged=False)
    parameters = sum(shape.linear(name).lora(rank) for name, rank in plan.ranks.items())
    if plan.dora:
        parameters += sum(shape.linear(name).outputs for name in plan.ranks)
    return AdapterSize(
        parameters,
        in_attention=any("attn." in name for name in plan.ranks),
        in_ffn=any(".ffn." in name for name in plan.ranks),
        state_bytes=STATE_BYTES[training.optimizer],
        averaged=training.use_ema,
    )


def _lent_lora(path: Path, model: ModelSection) -> LentLora:
    """The size of a LoRA that works in renders only, by the head of its file."""
    with open_lora(lora_file(path)) as file:
        in_ffn = any(".ffn." in name for name in file.shares)
        return LentLora(file.num_parameters, BF16 if uses_autocast(model) else FLOAT32, in_ffn)


def _sparse_share(checkpoint: CheckpointFolders | None) -> float:
    """What block-sparse attention keeps; all of it where that depends on the values."""
    settings = (
        BlockSparseSettings() if checkpoint is None else read_block_sparse_settings(checkpoint.transformer)
    )
    return 1 - (settings.rule.sparsity or 0.0)


def _vae_size(model: ModelSection, checkpoint: CheckpointFolders | None) -> VaeSize:
    element = BF16 if model.vae_dtype == "bf16" else FLOAT32
    if checkpoint is None:
        return VaeSize(RELEASED_VAE_PARAMETERS, BASE_WIDTH, element)
    folder = checkpoint.vae / "vae"
    return VaeSize(_parameters_in(folder), int(_config_of(folder).get("base_dim", BASE_WIDTH)), element)


def _text_encoder_size(model: ModelSection, checkpoint: CheckpointFolders | None) -> TextEncoderSize:
    each = PRECISION_BYTES.get(model.text_encoder_1_precision, 1.0)
    if checkpoint is None:
        released = RELEASED_TEXT_ENCODER
        return TextEncoderSize(released.parameters, each, released.heads)
    folder = checkpoint.text_encoder / "text_encoder"
    content = _config_of(folder)
    # UMT5's name for it, then Qwen's, whose language model may have a config of its own.
    heads = content.get("num_heads") or content.get("text_config", content)["num_attention_heads"]
    return TextEncoderSize(_parameters_in(folder), each, int(heads))


def _config_of(folder: Path) -> Mapping[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: cannot be read; fetch the checkpoint again"
        ) from error
    return content


def _parameters_in(folder: Path) -> int:
    """Elements of all tensors of a component, by the heads of its files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged or incomplete ({error}); fetch it again") from error
    return total
