"""How long a training step takes: what it computes and what it moves, over what a card can do.

Operations count 2 per multiply-add. A step computes a block's layers three times (forward, recompute, input
gradients; frozen weights have none of their own), and its attention 4.5 times, as the backward pass of
attention is 2.5 times its forward pass.
Letters: N video tokens, L text tokens, C hidden width, R elements of the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from longcat_tune.memory.budget_shape import TEXT_LAYERS, ModelShape
from longcat_tune.memory.budget_training import BatchSize, Placement, Training, hidden_bytes

ATTENTION_PASSES = 4.5
MEMORY_PASSES = 150
"""How often a step goes over a block's tokens in device memory, each time N C in bf16, for norms, modulation,
rotation, gates and sums: about 25 in each direction if all were fused, of which there are three."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a card can do.

    Attributes:
        products: operations per second in products of large bf16 matrices.
        attention: the same in attention, forward and backward together.
        memory: bytes per second of its own memory.
        link: bytes per second from page-locked host memory.
    """

    products: float
    attention: float
    memory: float
    link: float


CARDS: Mapping[str, Rates] = {
    "H200": Rates(7.0e14, 5.5e14, 4.3e12, 5.0e10),
    "H100": Rates(7.0e14, 5.5e14, 3.0e12, 5.0e10),
    "A100": Rates(2.5e14, 2.0e14, 1.7e12, 2.4e10),
    "L40S": Rates(1.9e14, 1.4e14, 7.5e11, 2.4e10),
    "RTX 6000 Ada": Rates(1.9e14, 1.4e14, 8.0e11, 2.4e10),
    "RTX A6000": Rates(1.2e14, 0.9e14, 6.5e11, 2.4e10),
    "RTX 5090": Rates(1.9e14, 1.6e14, 1.5e12, 4.8e10),
    "RTX 4090": Rates(1.5e14, 1.3e14, 8.5e11, 2.4e10),
    "RTX 3090": Rates(0.6e14, 0.5e14, 8.0e11, 2.4e10),
}
"""By a part of the name that CUDA gives a card. H100: public measurements of cuDNN's attention (595 forward,
516 backward, TFLOP/s) and of large products; the others: nine tenths of the data sheet for products, less for
attention, and PCIe 4 or 5 x16 less its overhead. Estimates, all of them."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step computes and moves.

    Attributes:
        linear: operations in products with weights.
        attention: operations in attention.
        memory: bytes gone over in device memory beside these.
        weights_in: bytes of weights from the host.
        boundaries: bytes of activations to the host and back.
        tokens: video tokens trained on.
    """

    linear: float
    attention: float
    memory: float
    weights_in: int
    boundaries: int
    tokens: int

    @property
    def operations(self) -> float:
        """All of them."""
        return self.linear + self.attention

    @property
    def moved(self) -> int:
        """Bytes over the link between host and device, in both directions."""
        return self.weights_in + self.boundaries

    def seconds(self, rates: Rates) -> float:
        """How long it takes: computation, or the link's busier direction if that takes longer."""
        compute = self.linear / rates.products + self.attention / rates.attention + self.memory / rates.memory
        return max(compute, (self.weights_in + self.boundaries / 2) / rates.link)


def step_cost(training: Training, *, micro_batches: int = 1) -> StepCost:
    """What a step costs.

    Args:
        training: with the batch that is stepped on.
        micro_batches: of the step.
    """
    shape, placement, batch = training.shape, training.placement, training.batch
    recomputed = (
        0 if placement.recompute_every is None else math.ceil(shape.depth / placement.recompute_every)
    )
    share = recomputed / shape.depth
    linear = forward_operations(shape, batch) * (2 + share)
    # An adapter's two small products: forward, recompute, input gradients, its own gradients.
    linear += 2 * batch.clips * batch.tokens * training.adapter.parameters * (3 + share)
    attention = attention_operations(shape, batch, training.attended_share) * (ATTENTION_PASSES - 1 + share)
    boundaries = 2 * recomputed * hidden_bytes(training) if placement.boundaries_on_host else 0
    return StepCost(
        linear=micro_batches * linear,
        attention=micro_batches * attention,
        memory=micro_batches * MEMORY_PASSES * shape.depth * hidden_bytes(training),
        weights_in=micro_batches * streamed_bytes(shape, training.precision, placement),
        boundaries=micro_batches * boundaries,
        tokens=micro_batches * batch.clips * batch.tokens,
    )


def forward_operations(shape: ModelShape, batch: BatchSize) -> float:
    """Operations of one forward pass in products with weights: 2 N per weight of a block's layers."""
    video = sum(one.weights for name, one in shape.block_linears.items() if name not in TEXT_LAYERS)
    text = shape.block_linears["cross_attn.kv_linear"].weights
    return 2.0 * batch.clips * shape.depth * (batch.tokens * video + batch.text_tokens * text)


def attention_operations(shape: ModelShape, batch: BatchSize, attended_share: float = 1.0) -> float:
    """Operations of one forward pass in attention: 4 N (N + L) C per block, of N the share attended to."""
    keys = attended_share * batch.tokens + batch.text_tokens
    return 4.0 * batch.clips * shape.depth * batch.tokens * keys * shape.hidden_size


def streamed_bytes(shape: ModelShape, precision: str, placement: Placement) -> int:
    """Bytes of weights that a step fetches: two visits of each block, less what stays in the ring."""
    blocks = min(placement.streamed_blocks, shape.depth)
    ring = 0 if placement.by_layer else placement.slots * placement.blocks_per_group
    staying = min(blocks, ring)
    return 2 * (blocks - staying) * shape.block_bytes(precision)


def rates_of(name: str) -> Rates | None:
    """What a card can do, by its name or a part of it; None when that is not known."""
    return next((rates for part, rates in CARDS.items() if part.lower() in name.lower()), None)
