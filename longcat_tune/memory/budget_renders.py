"""What forward passes without a graph need in memory: evaluation, renders, and refining what was rendered.

Pure arithmetic over sizes; what a block holds was counted in the real model on tensors without memory
(tests/memory/test_budget_renders.py does it again).
Letters: N video tokens of a call, K condition tokens in a cache, C hidden width, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longcat_tune.memory.budget import Budget, Moment, Term
from longcat_tune.memory.budget_parts import (
    CONVOLUTION_WORKSPACE,
    DECODE_BYTES_PER_PIXEL,
    ENCODE_BYTES_PER_PIXEL,
    Picture,
    VaeSize,
    vae_term,
)
from longcat_tune.memory.budget_shape import BF16, FLOAT32
from longcat_tune.memory.budget_training import (
    FRAGMENTS,
    BatchSize,
    Training,
    base_terms,
    hidden_bytes,
    lasting_terms,
    piece_bytes,
    resting_term,
    score_terms,
    weight_terms,
    wide_bytes,
)

PIXEL_BYTES = 3
"""Of a finished pixel: one byte per colour."""
FLOAT_PIXEL_BYTES = PIXEL_BYTES * FLOAT32
FRAME_BYTES = 2 * FLOAT_PIXEL_BYTES + PIXEL_BYTES
"""Per pixel of every decoded frame in host memory: in float32, scaled, and in bytes."""
ENLARGED, ENLARGED_AT_WORK = 2, 4
"""Float32 copies of an enlarged video in host memory: with and without padding, and while they are made."""
BLOCK_TOKENS = 64
"""Tokens of a block of block-sparse attention (4 x 4 x 4 in the released model)."""


@dataclass(frozen=True, slots=True)
class LentLora:
    """A LoRA that works in renders only.

    Attributes:
        parameters: elements.
        element_bytes: that it rests and works in.
        in_ffn: whether any feed-forward layer has one.
    """

    parameters: int = 0
    element_bytes: int = BF16
    in_ffn: bool = False

    @property
    def num_bytes(self) -> int:
        """Of its matrices."""
        return self.parameters * self.element_bytes


NO_LORA = LentLora()


@dataclass(frozen=True, slots=True)
class Render:
    """One kind of render.

    Attributes:
        batch: a segment of it as the transformer sees it.
        picture: a segment as the VAE sees it.
        video_frames: of all its segments together.
        lora: that is lent to the model meanwhile.
    """

    batch: BatchSize
    picture: Picture
    video_frames: int
    lora: LentLora = NO_LORA


def evaluation_budget(training: Training, batch: BatchSize) -> Budget:
    """What measuring the loss on a held-out clip needs: a forward pass beside all that training holds."""
    working = forward_terms(replace(training, batch=batch))
    return Budget((Moment(f"evaluation, {batch.name}", (*lasting_terms(training), *working)),))


def render_budget(training: Training, render: Render, vae: VaeSize, *, in_training: bool) -> Budget:
    """What a render needs: filling a cache, denoising, then decoding beside the transformer.

    Args:
        training: the run, or how a render without one places its weights.
        render: its sizes.
        vae: decodes; stays until the last render of a set.
        in_training: whether optimizer and gradients are in memory, too.
    """
    name, picture, batch = render.picture.name, render.picture, render.batch
    lasting = _lasting(training, in_training=in_training)
    moments = [
        _at_work(f"denoising, {name}", training, render, vae, in_training=in_training),
        Moment(
            f"decoding, {name}",
            (
                *lasting,
                vae_term(vae),
                *_vae_at_work(vae, "decoder's features", DECODE_BYTES_PER_PIXEL, picture.pixels),
                _decoded(picture),
                _video(render),
            ),
        ),
    ]
    if batch.cached_tokens:
        filling = replace(batch, tokens=batch.cached_tokens, cached_tokens=0)
        moments.append(
            _at_work(
                f"filling the cache, {name}",
                training,
                replace(render, batch=filling),
                vae,
                in_training=in_training,
                more=(_cache_term(replace(training, batch=batch)),),
            )
        )
    if render.lora.parameters:
        moments.append(_attaching(name, training, render.lora, in_training=in_training))
    return Budget(tuple(moments))


def refinement_budget(training: Training, render: Render, vae: VaeSize, *, in_training: bool) -> Budget:
    """What refining a finished render needs: encoding the enlarged video, cleaning it, and decoding it.

    Args:
        training: as for `render_budget`.
        render: the sizes of the enlarged and padded video, which is one segment, and the refinement's LoRA.
        vae: encodes and decodes.
        in_training: as for `render_budget`.
    """
    name, picture = render.picture.name, render.picture
    lasting = (*_lasting(training, in_training=in_training), vae_term(vae))
    kept = _enlarged(picture, ENLARGED, "with and without padding")
    made = _enlarged(picture, ENLARGED_AT_WORK, "enlarged, padded, and made bytes")
    return Budget(
        (
            _at_work(f"refining, {name}", training, render, vae, in_training=in_training, more=(kept,)),
            Moment(
                f"refining, encoding {name}",
                (
                    *lasting,
                    *_vae_at_work(vae, "encoder's features", ENCODE_BYTES_PER_PIXEL, picture.pixels),
                    made,
                ),
            ),
            Moment(
                f"refining, decoding {name}",
                (
                    *lasting,
                    *_vae_at_work(vae, "decoder's features", DECODE_BYTES_PER_PIXEL, picture.pixels),
                    _decoded(picture),
                    kept,
                ),
            ),
            _attaching(name, training, render.lora, in_training=in_training),
        )
    )


def forward_terms(training: Training, *, in_ffn: bool | None = None) -> tuple[Term, ...]:
    """The activations of a forward pass that records no graph: those of the block that works.

    Args:
        training: the run, with the batch of the pass.
        in_ffn: whether a feed-forward layer has a LoRA then; None: as the run's adapter.
    """
    batch, shape = training.batch, training.shape
    one, (wide, at_once) = hidden_bytes(training), wide_bytes(training)
    cached = _cached_bytes(training)
    adapted = training.adapter.in_ffn if in_ffn is None else in_ffn
    # Condition tokens attend by themselves, and both outputs are joined.
    attention = max((11 + bool(batch.given_tokens)) * one, 7 * (one + cached))
    in_feed_forward = 3 * one + max(3 * wide + 2 * piece_bytes(training), (3 + adapted) * wide)
    latents = 6 * FLOAT32 * batch.clips * batch.latents
    terms = [
        Term(
            "a block at work",
            max(attention, in_feed_forward),
            "device",
            f"{11 + bool(batch.given_tokens)} x N C"
            + (" or 7 x (N + K) C" if cached else "")
            + f" in attention, or 3 x N C and {3 + adapted} x {at_once:,} tokens x F in the feed-forward, "
            + "bf16",
        ),
        Term("latents", latents, "device", "6 x in float32"),
        *score_terms(training, 2),
    ]
    if cached:
        terms.append(_cache_term(training))
    if training.attended_share < 1:
        blocks = -(-batch.tokens // BLOCK_TOKENS) * -(-(batch.tokens + batch.cached_tokens) // BLOCK_TOKENS)
        chosen = int(batch.clips * shape.num_heads * blocks * training.attended_share)
        terms.append(
            Term("lists of key blocks", FLOAT32 * chosen, "device", "heads x query blocks x kept, in int32")
        )
    return tuple(terms)


def _at_work(
    name: str,
    training: Training,
    render: Render,
    vae: VaeSize,
    *,
    in_training: bool,
    more: tuple[Term, ...] = (),
) -> Moment:
    """A forward pass of a render, with its LoRA lent."""
    lora = render.lora
    lent = replace(training, resting_bytes=max(0, training.resting_bytes - lora.num_bytes))
    in_ffn = training.adapter.in_ffn or lora.in_ffn
    working = forward_terms(replace(lent, batch=render.batch), in_ffn=in_ffn)
    torn = Term(
        "allocator's fragments",
        int(FRAGMENTS * sum(term.num_bytes for term in working)),
        "device",
        f"{FRAGMENTS:.0%} of activations",
        reserve=True,
    )
    source = f"{lora.parameters:,} parameters, {lora.element_bytes} B"
    return Moment(
        name,
        (
            *_lasting(lent, in_training=in_training),
            Term("LoRA that is lent", lora.num_bytes, "device", source),
            vae_term(vae),
            *working,
            torn,
            _video(render),
            *more,
        ),
    )


def _attaching(name: str, training: Training, lora: LentLora, *, in_training: bool) -> Moment:
    """A LoRA of renders on its way from the file to its rest, over the device in float32."""
    size = FLOAT32 * lora.parameters
    return Moment(
        f"attaching a LoRA, for {name}",
        (
            *_lasting(training, in_training=in_training),
            Term("LoRA that is attached", size, "device", "4 B per parameter"),
            Term("LoRA's file", size, "host", "4 B per parameter at most"),
        ),
    )


def _lasting(training: Training, *, in_training: bool) -> tuple[Term, ...]:
    if in_training:
        return lasting_terms(training)
    adapter = FLOAT32 * training.adapter.parameters
    return (
        *weight_terms(training.shape, training.precision, training.placement),
        Term("adapter", adapter, "device", "4 B per parameter"),
        resting_term(training),
        *base_terms(training.imports_bytes),
    )


def _vae_at_work(vae: VaeSize, name: str, per_pixel: int, pixels: int) -> tuple[Term, ...]:
    size = vae.working_bytes(per_pixel, pixels)
    return (
        Term(name, size, "device", f"{pixels:,} pixels x counted bytes"),
        Term("convolutions' workspace", CONVOLUTION_WORKSPACE, "device", "cuDNN", reserve=True),
    )


def _decoded(picture: Picture) -> Term:
    size = FRAME_BYTES * picture.pixels * picture.frames
    return Term("decoded frames", size, "host", f"{picture.frames} x pixels x {FRAME_BYTES} B")


def _video(render: Render) -> Term:
    """A long video, of which every segment makes a new one; a single segment is what was decoded."""
    segments = render.video_frames > render.picture.frames
    size = 2 * PIXEL_BYTES * render.picture.pixels * render.video_frames if segments else 0
    return Term("video so far", size, "host", f"2 x {render.video_frames} x pixels x {PIXEL_BYTES} B")


def _enlarged(picture: Picture, copies: int, what: str) -> Term:
    size = copies * FLOAT_PIXEL_BYTES * picture.pixels * picture.frames
    return Term("enlarged video", size, "host", f"{copies} x {picture.frames} frames in float32: {what}")


def _cached_bytes(training: Training) -> int:
    """An activation of the condition tokens of a cache, in bf16."""
    return BF16 * training.batch.clips * training.batch.cached_tokens * training.shape.hidden_size


def _cache_term(training: Training) -> Term:
    size = 2 * training.shape.depth * _cached_bytes(training)
    return Term("cache of condition frames", size, "device", "keys and values: 2 x K C in bf16 per block")
