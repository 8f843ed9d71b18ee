"""Config to the loaded transformer: how its frozen weights are held, where they lie, and what attends."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longcat_tune.config.memory import MemorySection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError
from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.sharding import BlockSharding
from longcat_tune.memory.streaming import BlockStream, spread_evenly
from longcat_tune.model.attention import AttentionChoice, choose_attention
from longcat_tune.model.block_sparse.settings import read_block_sparse_settings
from longcat_tune.model.compilation import choose_elementwise
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.weights import load_transformer, read_transformer_config
from longcat_tune.runs.build import uses_autocast
from longcat_tune.runs.precision import HeldWeights, base_weights
from longcat_tune.training.trouble import explained_out_of_memory

logger = logging.getLogger(__name__)

HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Base:
    """The frozen transformer as a run holds it.

    Attributes:
        model: with all that is not streamed on the device.
        stream: brings the weights of its streamed blocks; None: all blocks stay on the device.
    """

    model: LongCatVideoTransformer
    stream: BlockStream | None


def build_base(
    config: RunConfig, folder: Path, *, device: torch.device, trains: bool, sharded: bool = False
) -> Base:
    """Load the frozen base, block by block into the form and the place that it keeps.

    Args:
        config: the run; its sections model and memory.
        folder: the transformer's.
        device: where it computes.
        trains: whether gradients will be needed.
        sharded: whether each process of the run is to hold a share of the blocks only.

    Raises:
        CheckpointError: its files are incomplete or of another model.
        ConfigError: the library of a quantized format or of an attention kernel is not installed, or keys do
            not go together.
        DeviceError: the device has no room for it, or cannot compute with a format or kernel.
        UserError: the folder for offloaded weights cannot be written to.
    """
    attention = _attention(config.model, folder, device=device, trains=trains)
    weights = base_weights(config.model, device)
    stream, streamed = _stream(config.memory, folder, device=device)
    if sharded and (weights.quantize or streamed):
        raise ConfigError(
            "sharing the base out over processes (FSDP) needs plain weights on the device, and these are to "
            "be quantized or streamed; leave out the launcher's --use_fsdp, or base_model_precision and the "
            "keys of offloading"
        )
    sharding = BlockSharding(device) if sharded else None

    def prepare(number: int, block: nn.Module) -> None:
        if weights.quantize or number in streamed:
            weights.freeze(block)
        if stream is not None and number in streamed:
            stream.add(block)
        elif sharding is not None:
            sharding.add(block)
        else:
            block.to(device)

    with explained_out_of_memory("loading the transformer"):
        model = load_transformer(
            folder,
            dtype=weights.dtype,
            device=device,
            attend=attention.function,
            prepare_block=prepare,
            block_device=lambda number: _read_on(device, weights, host=sharded or number in streamed),
        )
        if sharding is not None:
            sharding.enclose(model, model.blocks)
    model.plan_attention = attention.plan
    model.ffn_chunk_tokens = config.memory.feed_forward_chunk_size
    model.elementwise = choose_elementwise(
        config.model.compile, device=device, hidden_size=model.final_layer.linear.in_features
    )
    if stream is not None:
        logger.info(
            "Streaming %d of %d blocks: %.1f GB of weights %s, %.1f GB of room for them on %s",
            len(streamed),
            len(model.blocks),
            stream.host_bytes / 1e9,
            "on the disk" if config.memory.group_offload_to_disk_path else "in host memory",
            stream.device_bytes / 1e9,
            device,
        )
    return Base(model, stream)


def base_weight(linear: nn.Linear) -> Tensor:
    """A base layer's dense weight [out, in] on the device that it computes on."""
    return linear.fetched_weight() if isinstance(linear, FrozenLinear) else linear.weight


def _read_on(device: torch.device, weights: HeldWeights, *, host: bool) -> torch.device:
    """Where a block's weights go as they are read: what is to be changed or sent away stays on the host."""
    return HOST if host or weights.quantize else device


def _attention(model: ModelSection, folder: Path, *, device: torch.device, trains: bool) -> AttentionChoice:
    """Pick the attention kernel, and say which it is."""
    architecture = read_transformer_config(folder)
    weights_dtype = torch.float32 if model.base_model_precision == "fp32" else torch.bfloat16
    choice = choose_attention(
        model.attention_implementation,
        device=device,
        dtype=torch.bfloat16 if uses_autocast(model) else weights_dtype,
        head_dim=architecture["hidden_size"] // architecture["num_heads"],
        training=trains,
        block_sparse=read_block_sparse_settings(folder),
    )
    logger.info("Attention: %s", choice.description)
    return choice


def _stream(
    memory: MemorySection, folder: Path, *, device: torch.device
) -> tuple[BlockStream | None, Collection[int]]:
    """What streams, and the numbers of the blocks that it gets."""
    depth = read_transformer_config(folder)["depth"]
    if memory.enable_group_offload:
        ahead = memory.group_offload_use_stream
        stream = BlockStream(
            device=device,
            slots=2 if ahead else 1,
            group=memory.group_offload_blocks_per_group,
            by_layer=memory.group_offload_type == "leaf_level",
            overlap=ahead,
            folder=memory.group_offload_to_disk_path,
        )
        return stream, range(depth)
    count = memory.musubi_blocks_to_swap
    if count > depth:
        logger.info("musubi_blocks_to_swap (%d): all %d blocks are streamed, there are no more", count, depth)
        count = depth
    return (BlockStream(device=device) if count else None), frozenset(spread_evenly(count, depth))
