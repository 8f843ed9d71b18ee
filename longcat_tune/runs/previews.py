"""Small pictures of a render while it is being made: what it would be if it ended at this step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.fitting import Decoder
from longcat_tune.runs.gallery import save_png
from longcat_tune.runs.render_watch import RenderWatch
from longcat_tune.sampling.pictures import evenly_spaced, frame_strip, to_frames

SUFFIX = ".preview.png"


@dataclass(slots=True)
class Previews:
    """The previews of one render.

    Attributes:
        name: of the render.
        every: denoising steps from one to the next.
        folder: gets the picture, which each preview replaces.
        decoder: of the render.
        watch: hears of each; the first that fails is the last one.
        failed: whether one did.
    """

    name: str
    every: int
    folder: Path
    decoder: Decoder
    watch: RenderWatch
    failed: bool = False

    def show(self, step: int, clean_BCTHW: Tensor) -> None:
        """Show a step, if it is one's turn.

        Args:
            step: finished steps of the segment.
            clean_BCTHW: what its latents are without noise, as the step sees them; normalised.
        """
        if self.failed or step % self.every:
            return
        path = self.folder / f"{self.name}{SUFFIX}"
        # Not in the sampler's modes: weights loaded in them could not be used outside.
        modes = (torch.inference_mode(mode=False), torch.autocast(clean_BCTHW.device.type, enabled=False))
        with self.watch.attempt(f"{self.name} preview") as attempt, modes[0], modes[1]:
            pixels_CFHW = self.decoder.use(
                partial(_decode_few, latents_CTHW=clean_BCTHW[0].clone()),
                on_smaller=partial(self.watch.on_smaller, self.name),
            )
            save_png(frame_strip(to_frames(pixels_CFHW)), path)
            self.watch.on_preview(self.name, step, path)
        self.failed = bool(attempt.failures)


def _decode_few(vae: VideoAutoencoder, *, latents_CTHW: Tensor) -> Tensor:
    """A few frames, each decoded as if it were the first: quick, and sharp enough to judge by."""
    chosen = evenly_spaced(latents_CTHW.shape[1])
    return torch.cat([vae.decode(latents_CTHW[:, index : index + 1]) for index in chosen], dim=1)
