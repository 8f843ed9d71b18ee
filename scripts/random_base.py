"""The transformer at any size with random weights, built block by block; for measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, nn

from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_training import Placement
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream, spread_evenly
from longcat_tune.model.attention import AttentionChoice, choose_attention
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.lora_targets import lora_target_modules

STD = 0.02
MLP_RATIO = 4


@dataclass(frozen=True)
class RandomBase:
    """A model that trains.

    Attributes:
        model: with its adapter.
        stream: of its streamed blocks; None: all are resident.
        attention: what attends.
        adapter_parameters: elements that are trained.
    """

    model: LongCatVideoTransformer
    stream: BlockStream | None
    attention: AttentionChoice
    adapter_parameters: int

    def place(self, placement: Placement) -> Boundaries | None:
        """Let activations lie where a placement says; weights stay where they were built."""
        boundaries = None
        for block in self.model.blocks:
            # What an earlier placement put in front of the class's own.
            block.__dict__.pop("forward", None)
        if placement.recompute_every is not None:
            device = next(self.model.parameters()).device
            boundaries = Boundaries(device) if placement.boundaries_on_host else None
            enable_recompute(self.model.blocks, interval=placement.recompute_every, boundaries=boundaries)
        self.model.ffn_chunk_tokens = placement.ffn_chunk_tokens
        return boundaries


def random_base(
    shape: ModelShape,
    precision: str,
    placement: Placement,
    *,
    device: torch.device,
    rank: int,
    attention: str,
) -> RandomBase:
    """Build a model whose weights are normal, of the released model's architecture.

    Args:
        shape: its sizes.
        precision: bf16, or a quantized one.
        placement: which blocks are streamed.
        device: where it computes.
        rank: of the adapter on its attention.
        attention: a value of attention_implementation.
    """
    chosen = choose_attention(
        attention,
        device=device,
        dtype=torch.bfloat16,
        head_dim=shape.head_dim,
        training=True,
        block_sparse=BlockSparseSettings(),
    )
    quantize = _quantizer(precision, device)
    with torch.device("meta"):
        model = LongCatVideoTransformer(
            hidden_size=shape.hidden_size,
            depth=shape.depth,
            num_heads=shape.num_heads,
            caption_channels=shape.caption_channels,
            mlp_ratio=MLP_RATIO,
            adaln_tembed_dim=shape.time_size,
            attend=chosen.function,
        ).to(torch.bfloat16)
    model.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    blocks, model.blocks = model.blocks, nn.ModuleList()
    _fill(model, device)
    model.blocks = blocks
    streamed = frozenset(spread_evenly(placement.streamed_blocks, shape.depth))
    stream = BlockStream(device=device, slots=placement.slots) if streamed else None
    for number, block in enumerate(blocks):
        _fill(block, device)
        freeze_linears(block, in_float32=(Float32Linear,), quantize=quantize)
        if stream is not None and number in streamed:
            stream.add(block)
    add_lora(
        model,
        targets=lora_target_modules(model, "attention"),
        rank=rank,
        alpha=rank,
        generator=Generator().manual_seed(0),
        autocast=True,
    )
    model.plan_attention = chosen.plan
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return RandomBase(model, stream, chosen, trained)


def _quantizer(precision: str, device: torch.device) -> Callable[[nn.Linear], FrozenLinear] | None:
    if precision == "bf16":
        return None
    # Imported here: what is measured in bf16 needs none of its libraries.
    from longcat_tune.memory.quantize import quantizer

    return quantizer(precision, device=device, via=device, key="precision")


def _fill(module: nn.Module, device: torch.device) -> None:
    """Give a module on the meta device normal weights; those of norms lie around 1."""
    for part in module.modules():
        for name, empty in list(part.named_parameters(recurse=False)):
            weight = torch.empty(empty.shape, dtype=empty.dtype, device=device).normal_(std=STD)
            if name == "weight" and weight.ndim == 1:
                weight += 1
            part.register_parameter(name, nn.Parameter(weight, requires_grad=False))
