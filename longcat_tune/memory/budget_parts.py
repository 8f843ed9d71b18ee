"""What encoding clips and captions needs in memory, and the VAE's sizes.

Pure arithmetic. Bytes per pixel of the VAE were counted in diffusers' model at full size on tensors without
memory; they grow with its base width and with the size of an element, not with the length of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

from longcat_tune.memory.budget import Budget, Moment, Term
from longcat_tune.memory.budget_shape import BF16, FLOAT32
from longcat_tune.memory.budget_training import base_terms

BASE_WIDTH = 96
"""Channels of the released VAE's outermost layers; what the bytes per pixel were counted at, in bf16."""
ENCODE_BYTES_PER_PIXEL = 7_502
DECODE_BYTES_PER_PIXEL = 10_160
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
                    vae_term(vae),
                    Term(
                        "encoder's features", working, "device", f"{picture.pixels:,} pixels x counted bytes"
                    ),
                    Term("convolutions' workspace", CONVOLUTION_WORKSPACE, "device", "cuDNN", reserve=True),
                    Term("decoded frames", 2 * frames, "host", "of two clips, one byte per value"),
                ),
            ),
        )
    )


def vae_term(vae: VaeSize) -> Term:
    """Its weights."""
    size = vae.parameters * vae.element_bytes
    return Term("VAE", size, "device", f"{vae.parameters / 1e6:.0f} M parameters, {vae.element_bytes} B each")
