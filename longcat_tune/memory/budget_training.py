"""What training steps need in memory: weights, adapter, what a step keeps, and one block's own activations.

Pure arithmetic over sizes; how many tensors of which width a block holds was counted in the real model on
tensors without memory (tests/memory/test_budget_training.py does it again).
Letters: N video tokens of a batch, C hidden width, F feed-forward width, L text tokens of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longcat_tune.memory.budget import Budget, Moment, Term
from longcat_tune.memory.budget_shape import BF16, FLOAT32, ModelShape

WORKSPACE = 64 * 2**20
"""Bytes that cuBLAS keeps for its products on a Hopper card, forward and backward threads each having a
handle (32 MiB each; 8 MiB on older ones)."""
CONTEXT = int(0.6 * 2**30)
"""Bytes that a CUDA process takes of a card before its first tensor: context, kernels, libraries."""
FRAGMENTS = 0.04
"""Share of the activations that torch's allocator holds beyond what is in use, with expandable segments."""
FETCHED_BOUNDARIES = 2
"""Inputs of blocks that are on the device at once when the others are in host memory: the one in use and the
one fetched ahead."""
PIECE_VALUES = 1 << 25
"""Values that norms, gates and modulation are computed on at a time (model.elementwise)."""
PIECES = 7
RING, AT_WORK = "ring of slots", "weights at work"
FROM_THE_FIRST_STEP = (RING, AT_WORK)
"""Terms of the weights that there are none of while these are loaded."""
WAITING_BATCHES = 4
"""Batches in host memory at once: one in use, one handed out, and those read ahead (data.batches)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where weights and activations are; what a plan may change of a run.

    Attributes:
        streamed_blocks: kept off the device.
        blocks_per_group: streamed together.
        slots: groups on the device at once.
        by_layer: whether single layers are streamed in place of groups of blocks.
        boundaries_on_host: whether the inputs of recomputed blocks wait in host memory.
        ffn_chunk_tokens: that a feed-forward layer works on at a time; None: all.
        recompute_every: one of so many blocks is recomputed; None: none is.
        on_disk: whether streamed weights are mapped from files, which takes no host memory of its own.
        sharing: processes that each hold a share of every block, and put it together to use it.
    """

    streamed_blocks: int = 0
    blocks_per_group: int = 1
    slots: int = 2
    by_layer: bool = False
    boundaries_on_host: bool = False
    ffn_chunk_tokens: int | None = None
    recompute_every: int | None = 1
    on_disk: bool = False
    sharing: int = 1


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """What is trained.

    Attributes:
        parameters: elements; float32.
        in_attention: whether any attention projection has an adapter.
        in_ffn: whether any feed-forward layer has one.
        state_bytes: of the optimizer, per parameter.
        averaged: whether a running average is kept.
    """

    parameters: int
    in_attention: bool
    in_ffn: bool
    state_bytes: float
    averaged: bool


@dataclass(frozen=True, slots=True)
class BatchSize:
    """One micro batch.

    Attributes:
        name: shown, `832x480@93`.
        clips: in it.
        tokens: video tokens of one clip.
        latents: values of one clip's latents.
        text_tokens: of one caption, padding included.
        given_tokens: those of `tokens` that are a condition and see only each other.
        cached_tokens: condition tokens beside `tokens`, of which every block has keys and values in a cache.
    """

    name: str
    clips: int
    tokens: int
    latents: int
    text_tokens: int = 512
    given_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that the memory of a training step depends on.

    Attributes:
        shape: of the transformer.
        precision: that its matrices are kept in.
        placement: of weights and activations.
        adapter: what is trained.
        batch: the largest.
        imports_bytes: of host memory that Python and its libraries take.
        writes_scores: whether attention is written out instead of fused.
        attended_share: of all pairs of video tokens; 1 is dense.
        resting_bytes: of LoRAs that work in renders only, and else wait in host memory.
    """

    shape: ModelShape
    precision: str
    placement: Placement
    adapter: AdapterSize
    batch: BatchSize
    imports_bytes: int
    writes_scores: bool = False
    attended_share: float = 1.0
    resting_bytes: int = 0


def training_budget(training: Training) -> Budget:
    """What training with this batch needs: at the fullest moment of the backward pass, and in the update."""
    lasting = lasting_terms(training)
    activations = (*boundary_terms(training), *block_terms(training))
    fragments = int(FRAGMENTS * sum(term.num_bytes for term in activations if term.where == "device"))
    torn = Term("allocator's fragments", fragments, "device", f"{FRAGMENTS:.0%} of activations", reserve=True)
    adapter = training.adapter
    largest = FLOAT32 * adapter.parameters // max(1, 2 * training.shape.depth)
    return Budget(
        (
            Moment("loading the transformer", loading_terms(training)),
            Moment(f"backward of a block, {training.batch.name}", (*lasting, *activations, torn)),
            Moment(
                "update of the adapter",
                (*lasting, Term("update's own", largest, "device", "one large matrix in float32")),
            ),
        )
    )


def loading_terms(training: Training) -> tuple[Term, ...]:
    """What is in memory when the last block is read: all others, and that one as it is in its file."""
    shape, precision, placement = training.shape, training.precision, training.placement
    element = FLOAT32 if precision == "fp32" else BF16
    sizes = [element * one.weights for one in shape.block_linears.values()]
    # A resident block in the precision of its file goes to the device tensor by tensor.
    whole = placement.streamed_blocks or precision not in {"bf16", "fp32"}
    read = sum(sizes) if whole else max(sizes)
    weights = weight_terms(shape, precision, placement)
    return (
        *(term for term in weights if term.name not in FROM_THE_FIRST_STEP),
        Term("block that is read", read, "host", "before it is quantized and goes where it stays"),
        *base_terms(training.imports_bytes),
    )


def lasting_terms(training: Training) -> tuple[Term, ...]:
    """What is in memory from the first step to the last."""
    adapter, batch = training.adapter, training.batch
    values = batch.clips * batch.latents
    text = batch.clips * batch.text_tokens * training.shape.caption_channels
    return (
        *weight_terms(training.shape, training.precision, training.placement),
        Term("adapter", FLOAT32 * adapter.parameters, "device", f"{adapter.parameters:,} parameters, 4 B"),
        Term("adapter's gradients", FLOAT32 * adapter.parameters, "device", "4 B per parameter"),
        Term(
            "optimizer's state",
            int(adapter.state_bytes * adapter.parameters),
            "device",
            f"{adapter.state_bytes:g} B per parameter",
        ),
        Term(
            "running average",
            FLOAT32 * adapter.parameters if adapter.averaged else 0,
            "device",
            "4 B per parameter",
        ),
        Term(
            "batch",
            4 * FLOAT32 * values + BF16 * text,
            "device",
            "clean, noise, noised and target latents in float32; text in bf16",
        ),
        Term(
            "batches read ahead",
            WAITING_BATCHES * BF16 * (values + text),
            "host",
            f"{WAITING_BATCHES} x latents and text in bf16",
        ),
        resting_term(training),
        *base_terms(training.imports_bytes),
    )


def resting_term(training: Training) -> Term:
    """LoRAs that work in renders only, between these."""
    return Term("LoRAs of renders", training.resting_bytes, "host", "at rest, as they work")


def base_terms(imports_bytes: int) -> tuple[Term, ...]:
    """What every moment holds beside tensors."""
    return (
        Term("products' workspace", WORKSPACE, "device", "cuBLAS, 2 x 32 MiB", of_card=True),
        Term("Python and libraries", imports_bytes, "host", "measured on this machine, or typical"),
    )


def weight_terms(shape: ModelShape, precision: str, placement: Placement) -> tuple[Term, ...]:
    """The frozen base: on the device, in the ring, and in host memory."""
    block = shape.block_bytes(precision)
    streamed = min(placement.streamed_blocks, shape.depth)
    resident = shape.depth - streamed
    ring, slots = ring_bytes(shape, precision, placement)
    return (
        Term(
            "resident blocks",
            resident * block // placement.sharing,
            "device",
            f"{resident} of {shape.depth} blocks of {block / 1e6:.0f} MB in {precision}"
            + (f", shared by {placement.sharing}" if placement.sharing > 1 else ""),
        ),
        Term("embedders, norms, biases", shape.small_bytes(precision), "device", "never streamed"),
        Term(RING, ring, "device", slots),
        Term(
            AT_WORK,
            working_weights(shape, precision),
            "device",
            "the modulation in float32; a quantized layer as bf16",
        ),
        Term(
            "streamed blocks",
            0 if placement.on_disk else streamed * block,
            "host",
            f"{streamed} blocks of {block / 1e6:.0f} MB" + (", on disk" if placement.on_disk else ""),
        ),
    )


def ring_bytes(shape: ModelShape, precision: str, placement: Placement) -> tuple[int, str]:
    """Device memory that streamed weights visit, and how it comes about."""
    block, streamed = shape.block_bytes(precision), min(placement.streamed_blocks, shape.depth)
    if placement.sharing > 1:
        return placement.slots * block, f"{placement.slots} whole blocks of {block / 1e6:.0f} MB"
    if placement.by_layer and streamed:
        layer = shape.largest_layer_bytes(precision)
        return placement.slots * layer, f"{placement.slots} layers of {layer / 1e6:.0f} MB"
    groups = math.ceil(streamed / placement.blocks_per_group)
    blocks = min(placement.slots, groups) * min(placement.blocks_per_group, max(streamed, 1))
    return blocks * block, f"{blocks} blocks of {block / 1e6:.0f} MB"


def working_weights(shape: ModelShape, precision: str) -> int:
    """The largest copy of a weight that a layer makes while it works."""
    sizes = shape.block_linears
    modulation = FLOAT32 * sizes["adaLN_modulation.1"].weights if precision != "fp32" else 0
    if precision in {"bf16", "fp32"}:
        return modulation
    return max(modulation, BF16 * max(size.weights for size in sizes.values()))


def boundary_terms(training: Training) -> tuple[Term, ...]:
    """What is kept between forward and backward of every block: its input, or all that it computed."""
    shape, placement = training.shape, training.placement
    every = placement.recompute_every
    recomputed = 0 if every is None else math.ceil(shape.depth / every)
    one = hidden_bytes(training)
    kept = shape.depth - recomputed
    waiting = min(recomputed, FETCHED_BOUNDARIES) if placement.boundaries_on_host else recomputed
    return (
        Term("inputs of blocks", waiting * one, "device", f"{waiting} x N C in bf16"),
        Term(
            "inputs of blocks",
            recomputed * one if placement.boundaries_on_host else 0,
            "host",
            f"{recomputed} x N C in bf16",
        ),
        Term(
            "blocks that are not recomputed",
            kept * (one + sum(term.num_bytes for term in saved_terms(training))),
            "device",
            f"{kept} x its input and what it saves",
        ),
        Term(
            "text and positions",
            training.batch.clips * training.batch.text_tokens * shape.hidden_size * BF16
            + training.batch.tokens * shape.head_dim * FLOAT32,
            "device",
            "embedded text in bf16, cosines and sines in float32",
        ),
    )


def block_terms(training: Training) -> tuple[Term, ...]:
    """The activations of the one block that is recomputed and differentiated at a time.

    The last one counts: what others keep is given up block by block before one more is recomputed.
    """
    every = training.placement.recompute_every
    if every is None or (training.shape.depth - 1) % every:
        # What it saved is among what blocks keep that are not recomputed.
        return passing_terms(training)
    return (*saved_terms(training), *passing_terms(training))


def saved_terms(training: Training) -> tuple[Term, ...]:
    """What a block saves for its backward pass, beside its input."""
    one, adapter = hidden_bytes(training), training.adapter
    attention = 7 + adapter.in_attention
    cross = 3 + adapter.in_attention
    held = ", and the projections' inputs" if adapter.in_attention else ""
    wide, at_once = wide_bytes(training)
    whole = at_once == training.batch.clips * training.batch.tokens
    inputs = int(adapter.in_ffn or not whole)
    return (
        Term("self-attention", attention * one, "device", f"{attention} x N C: q, k, qkv, output, sum{held}"),
        Term("cross-attention", cross * one, "device", f"{cross} x N C: q before and after its norm{held}"),
        Term("feed-forward's inputs", (1 + inputs) * one, "device", f"{1 + inputs} x N C"),
        Term("feed-forward", 2 * wide if whole else 0, "device", "2 x N F: gate and value"),
        *score_terms(training, 2),
    )


def passing_terms(training: Training) -> tuple[Term, ...]:
    """What the backward pass of the feed-forward, a block's fullest moment, holds beside what was saved."""
    one = hidden_bytes(training)
    wide, at_once = wide_bytes(training)
    whole = at_once == training.batch.clips * training.batch.tokens
    number, hidden = (3, 1) if whole else (5, 3)
    return (
        Term("feed-forward's gradients", number * wide, "device", f"{number} x {at_once:,} tokens x F"),
        Term("gradients of hidden states", hidden * one, "device", f"{hidden} x N C"),
        Term("pieces at work", PIECES * piece_bytes(training), "device", f"{PIECES} x 33.5 M values in bf16"),
        *score_terms(training, 2),
    )


def score_terms(training: Training, copies: int) -> tuple[Term, ...]:
    """Attention that is written out holds the scores of all heads, of cached keys, too."""
    if not training.writes_scores:
        return ()
    batch = training.batch
    pairs = batch.clips * batch.tokens * (batch.tokens + batch.cached_tokens)
    scores = FLOAT32 * training.shape.num_heads * pairs
    return (Term("attention scores", copies * scores, "device", f"{copies} x heads N keys in float32"),)


def wide_bytes(training: Training) -> tuple[int, int]:
    """An activation inside the feed-forward in bf16, and the tokens it is of."""
    chunk, clips = training.placement.ffn_chunk_tokens, training.batch.clips
    tokens = training.batch.tokens if chunk is None else min(training.batch.tokens, chunk)
    return BF16 * clips * tokens * training.shape.ffn_size, clips * tokens


def piece_bytes(training: Training) -> int:
    """One piece of an activation that is computed piece by piece, in bf16."""
    return min(BF16 * PIECE_VALUES, wide_bytes(training)[0])


def hidden_bytes(training: Training) -> int:
    """One activation between two blocks: N C in bf16."""
    return BF16 * training.batch.clips * training.batch.tokens * training.shape.hidden_size
