"""What to render, and the latents a render starts from; knows no model and no file format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longcat_tune.types import Bucket, TextFeatures, pixel_frames

CONTINUED_FRAMES = 13
"""Of a clip that goes on, so many last frames are given (the authors' num_cond_frames)."""


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One video to render.

    Attributes:
        name: short, safe in a file name, unique in its set.
        prompt: what to show.
        negative_prompt: what guidance moves away from; may be empty.
        size: width, height and number of frames; of each segment.
        num_steps: model evaluations.
        guidance: 1 evaluates once a step, more twice.
        seed: of the starting noise.
        start_image: holds the given first frames, an image or a clip; None renders from text alone.
        start_frame: where in a clip they begin, counted at the run's framerate.
        num_start_frames: how many: 1 for image-to-video, more to continue a clip.
        num_segments: how often the video goes on from its own last CONTINUED_FRAMES, the first one included.
        distilled: walk down the short grid that the cfg_step_lora was trained on.
    """

    name: str
    prompt: str
    negative_prompt: str
    size: Bucket
    num_steps: int
    guidance: float
    seed: int
    start_image: Path | None = None
    start_frame: int = 0
    num_start_frames: int = 1
    num_segments: int = 1
    distilled: bool = False

    @property
    def num_frames(self) -> int:
        """Of all segments together; each but the first begins with frames of the one before."""
        return self.size.num_frames + (self.num_segments - 1) * (self.size.num_frames - CONTINUED_FRAMES)

    @property
    def file_stem(self) -> str:
        """`<name>_<W>x<H>_<seed>`."""
        return f"{self.name}_{self.size.width}x{self.size.height}_{self.seed}"


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request with everything encoded, so that rendering needs only the transformer and the decoder.

    Attributes:
        request: what to render.
        prompt: features of its prompt.
        negative: features of its negative prompt.
        cond_CKHW: clean latents of the first frames, normalised; None for text-to-video.
    """

    request: RenderRequest
    prompt: TextFeatures
    negative: TextFeatures
    cond_CKHW: Tensor | None = None

    @property
    def num_cond_latents(self) -> int:
        """Leading latent frames that are given."""
        return 0 if self.cond_CKHW is None else self.cond_CKHW.shape[1]

    @property
    def num_given_frames(self) -> int:
        """Leading pixel frames that they stand for."""
        return pixel_frames(self.num_cond_latents)


def continued(encoded: EncodedRequest, cond_CKHW: Tensor, *, segment: int) -> EncodedRequest:
    """The same request for a later segment.

    Args:
        encoded: of the first one.
        cond_CKHW: latents of the last frames so far.
        segment: its number, from 1 for the second; added to the seed, so that its noise is another.
    """
    seed = (encoded.request.seed + segment) % 2**32
    return replace(encoded, request=replace(encoded.request, seed=seed), cond_CKHW=cond_CKHW)


def starting_latents(encoded: EncodedRequest, *, channels: int) -> Tensor:
    """Noise from the request's seed, with its clean condition latents in front.

    The noise is drawn on the CPU from a generator of its own: it is the same on every device and leaves the
    training's random numbers alone.

    Args:
        encoded: the request.
        channels: latent channels.

    Returns:
        Float32 [1, channels, T, H, W] on the CPU.
    """
    generator = torch.Generator().manual_seed(encoded.request.seed)
    latents_BCTHW = torch.randn((1, channels, *encoded.request.size.latent_shape), generator=generator)
    if encoded.cond_CKHW is not None:
        latents_BCTHW[0, :, : encoded.num_cond_latents] = encoded.cond_CKHW.float()
    return latents_BCTHW
