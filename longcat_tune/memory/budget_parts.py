"""What the parts of a run beside training need in memory: renders, and encoding clips and captions.

Pure arithmetic. Bytes per pixel of the VAE were counted in diffusers' model at full size on tensors without
memory; they grow with its base width and with the size of an element, not with the length of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longcat_tune.memory.budget import Budget, Moment, Term
from longcat_tune.memory.budget_shape import BF16, FLOAT32
from longcat_tune.memory.budget_training import (
    FRAGMENTS,
    BatchSize,
    Training,
    base_terms,
    hidden_bytes,
    lasting_terms,
    piece_bytes,
    weight_terms,
    wide_bytes,
)

BASE_WIDTH = 96
"""Channels of the released VAE's outermost layers; what the bytes per pixel were counted at, in bf16."""
ENCODE_BYTES_PER_PIXEL = 7_502
DECODE_BYTES_PER_PIXEL = 10_160
FRAME_BYTES = 3 * (2 * FLOAT32 + 1)
"""Per pixel of every decoded frame in host memory: three channels in float32, scaled, and in bytes."""
CONVOLUTION_WORKSPACE = 2**30
"""Bytes that cuDNN may take for its convolutions; an assumption."""
SCORE_COPIES = 6
"""Float32 copies of a caption's attention scores that are alive in the text encoder."""


@dataclass(frozen=True, slots=True)
class VaeSize:
    """The VAE.

    Attributes:
        parameters: elements.
        base_width: channels of its outermost layers.
        element_bytes: 2 in bf16, 4 in float32.
    """

    parameters: int
    base_width: int
    element_bytes: int

    def working_bytes(self, per_pixel: int, pixels: int) -> int:
        """What it takes to work on so many pixels of a frame."""
        return per_pixel * pixels * self.base_width * self.element_bytes // (BASE_WIDTH * BF16)


@dataclass(frozen=True, slots=True)
class TextEncoderSize:
    """The text encoder.

    Attributes:
        parameters: elements.
        bytes_per_parameter: in its precision.
        heads: of its attention.
        text_tokens: of a caption.
    """

    parameters: int
    bytes_per_parameter: float
    heads: int
    text_tokens: int = 512


RELEASED_VAE_PARAMETERS = 126_892_531
RELEASED_TEXT_ENCODER = TextEncoderSize(5_680_910_336, BF16, heads=64)
"""UMT5-XXL."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The size of a clip that is encoded or rendered.

    Attributes:
        name: shown.
        width: in pixels.
        height: in pixels.
        frames: number of them.
    """

    name: str
    width: int
    height: int
    frames: int

    @property
    def pixels(self) -> int:
        """Of one frame."""
        return self.width * self.height


def text_budget(encoder: TextEncoderSize, *, imports_bytes: int) -> Budget:
    """What encoding captions needs; they are encoded one at a time, before anything else is loaded."""
    weights = int(encoder.parameters * encoder.bytes_per_parameter)
    scores = SCORE_COPIES * FLOAT32 * encoder.heads * encoder.text_tokens**2
    described = f"{encoder.parameters / 1e9:.2f} G parameters, {encoder.bytes_per_parameter:g} B each"
    lasting = base_terms(imports_bytes)
    return Budget(
        (
            Moment(
                "encoding captions",
                (
                    *lasting,
                    Term("text encoder", weights, "device", described),
                    Term("attention scores", scores, "device", f"{SCORE_COPIES} x heads L L in float32"),
                ),
            ),
            Moment("loading the text encoder", (*lasting, Term("text encoder", weights, "host", described))),
        )
    )


def encode_budget(vae: VaeSize, picture: Picture, *, imports_bytes: int) -> Budget:
    """What encoding clips needs; four frames are worked on at a time, whatever a clip's length."""
    working = vae.working_bytes(ENCODE_BYTES_PER_PIXEL, picture.pixels)
    frames = 3 * picture.pixels * picture.frames
    return Budget(
        (
            Moment(
                f"encoding clips, {picture.name}",
                (
                    *base_terms(imports_bytes),
                    _vae_term(vae),
                    Term(
                        "encoder's features", working, "device", f"{picture.pixels:,} pixels x counted bytes"
                    ),
                    Term("convolutions' workspace", CONVOLUTION_WORKSPACE, "device", "cuDNN", reserve=True),
                    Term("decoded frames", 2 * frames, "host", "of two clips, one byte per value"),
                ),
            ),
        )
    )


def evaluation_budget(training: Training, batch: BatchSize) -> Budget:
    """What measuring the loss on a held-out clip needs: a forward pass beside all that training holds."""
    working = forward_terms(replace(training, batch=batch))
    return Budget((Moment(f"evaluation, {batch.name}", (*lasting_terms(training), *working)),))


def render_budget(
    training: Training, batch: BatchSize, picture: Picture, vae: VaeSize, *, in_training: bool
) -> Budget:
    """What a render needs: denoising, then decoding beside the transformer.

    Args:
        training: the run, or how a render without one places its weights.
        batch: the render as the transformer sees it.
        picture: the render as the VAE sees it.
        vae: decodes.
        in_training: whether optimizer and gradients are in memory, too.
    """
    rendering = replace(training, batch=batch)
    lasting = lasting_terms(training) if in_training else _weights_alone(training)
    working = forward_terms(rendering)
    torn = Term(
        "allocator's fragments",
        int(FRAGMENTS * sum(term.num_bytes for term in working)),
        "device",
        f"{FRAGMENTS:.0%} of activations",
        reserve=True,
    )
    features = vae.working_bytes(DECODE_BYTES_PER_PIXEL, picture.pixels)
    decoded = FRAME_BYTES * picture.pixels * picture.frames
    return Budget(
        (
            Moment(f"denoising, {picture.name}", (*lasting, *working, torn)),
            Moment(
                f"decoding, {picture.name}",
                (
                    *lasting,
                    _vae_term(vae),
                    Term(
                        "decoder's features", features, "device", f"{picture.pixels:,} pixels x counted bytes"
                    ),
                    Term("convolutions' workspace", CONVOLUTION_WORKSPACE, "device", "cuDNN", reserve=True),
                    Term("decoded frames", decoded, "host", f"{picture.frames} x pixels x {FRAME_BYTES} B"),
                ),
            ),
        )
    )


def forward_terms(training: Training) -> tuple[Term, ...]:
    """The activations of a forward pass that records no graph: those of the block that works."""
    one, (wide, at_once) = hidden_bytes(training), wide_bytes(training)
    in_ffn = 3 * one + 3 * wide + 2 * piece_bytes(training)
    latents = 6 * FLOAT32 * training.batch.clips * training.batch.latents
    return (
        Term(
            "a block at work",
            max(11 * one, in_ffn),
            "device",
            f"11 x N C in attention, or 3 x N C and 3 x {at_once:,} tokens x F in the feed-forward, bf16",
        ),
        Term("latents", latents, "device", "6 x in float32"),
    )


def _weights_alone(training: Training) -> tuple[Term, ...]:
    adapter = FLOAT32 * training.adapter.parameters
    return (
        *weight_terms(training.shape, training.precision, training.placement),
        Term("adapter", adapter, "device", "4 B per parameter"),
        *base_terms(training.imports_bytes),
    )


def _vae_term(vae: VaeSize) -> Term:
    size = vae.parameters * vae.element_bytes
    return Term("VAE", size, "device", f"{vae.parameters / 1e6:.0f} M parameters, {vae.element_bytes} B each")
