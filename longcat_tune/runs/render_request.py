"""One cached request to frames: denoised and decoded at the largest size that fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.vae import VideoAutoencoder, chunks_of
from longcat_tune.runs.cache_jobs import CachedRequest
from longcat_tune.runs.fitting import Decoder, Fitting, OnSmaller
from longcat_tune.runs.refinement import Refiner
from longcat_tune.sampling.denoise import OnStep
from longcat_tune.sampling.pictures import Frames, to_frames
from longcat_tune.sampling.render import render_latents, text_condition
from longcat_tune.sampling.requests import CONTINUED_FRAMES, EncodedRequest, continued
from longcat_tune.types import Bucket


@dataclass(frozen=True, slots=True)
class Rendered:
    """A finished render.

    Attributes:
        frames_FHW3: its frames.
        refined: whether they are twice as many in the same time.
    """

    frames_FHW3: Frames
    refined: bool


@dataclass(frozen=True, slots=True)
class RequestRenderer:
    """What the renders of one set share.

    Attributes:
        model: the transformer, in its evaluation mode.
        decoder: the VAE.
        fitting: which sizes fit.
        shift: of the sigma schedule.
        device: where the model is.
        compute: entered around every denoising, such as autocast.
        lend_lora: entered around every denoising: lends the model what works in renders only.
        refiner: makes the finished video larger and smoother; None: it stays as it is.
    """

    model: LongCatVideoTransformer
    decoder: Decoder
    fitting: Fitting
    shift: float
    device: torch.device
    compute: Callable[[], AbstractContextManager[object]]
    lend_lora: Callable[[], AbstractContextManager[None]]
    refiner: Refiner | None

    def render(self, cached: CachedRequest, *, on_step: OnStep, on_smaller: OnSmaller) -> Rendered:
        """Render one request.

        Args:
            cached: what to render.
            on_step: called after every step.
            on_smaller: hears of what is lowered to fit into memory.

        Returns:
            Its frames, fewer than asked for where those did not fit.

        Raises:
            UserError: a cache file is damaged.
            DeviceError: out of memory, however short the render.
        """
        encoded = _encoded(cached)
        frames_FHW3 = self._segment(encoded, on_step=on_step, on_smaller=on_smaller)
        for segment in range(1, cached.request.num_segments):
            given_FHW3 = frames_FHW3[-CONTINUED_FRAMES:]
            cond_CKHW = self.decoder.use(partial(_encode, frames_FHW3=given_FHW3), on_smaller=on_smaller)
            later = continued(encoded, cond_CKHW, segment=segment)
            made_FHW3 = self._segment(later, on_step=on_step, on_smaller=on_smaller)
            frames_FHW3 = np.concatenate([frames_FHW3, made_FHW3[len(given_FHW3) :]])
        if self.refiner is None:
            return Rendered(frames_FHW3, refined=False)
        work = partial(self._refined, self.refiner, cached, encoded, frames_FHW3, on_step, on_smaller)
        refined_FHW3 = self.fitting.refine(frames_FHW3, work, device=self.device, on_smaller=on_smaller)
        return Rendered(refined_FHW3, refined=refined_FHW3 is not frames_FHW3)

    def _refined(
        self,
        refiner: Refiner,
        cached: CachedRequest,
        encoded: EncodedRequest,
        frames_FHW3: Frames,
        on_step: OnStep,
        on_smaller: OnSmaller,
    ) -> Frames:
        """Refine a video; a start image stays its first frame, frames of a clip do not."""
        is_image = cached.start is not None and cached.start.picks.count == 1
        return refiner.refine(
            self.model,
            frames_FHW3,
            text_condition(encoded.prompt, self.device),
            seed=cached.request.seed,
            start=cached.start if is_image else None,
            use_vae=lambda work: self.decoder.use(work, on_smaller=on_smaller),
            on_step=on_step,
        )

    def _segment(self, encoded: EncodedRequest, *, on_step: OnStep, on_smaller: OnSmaller) -> Frames:
        def denoise(size: Bucket) -> Tensor:
            sized = replace(encoded, request=replace(encoded.request, size=size))
            with self.lend_lora(), self.compute():
                return render_latents(
                    self.model,
                    sized,
                    channels=self.model.in_channels,
                    shift=self.shift,
                    device=self.device,
                    on_step=on_step,
                )

        latents_CTHW = self.fitting.make(
            denoise,
            encoded.request.size,
            given_frames=encoded.num_given_frames,
            device=self.device,
            on_smaller=on_smaller,
        )
        pixels_CFHW = self.decoder.use(lambda vae: vae.decode(latents_CTHW), on_smaller=on_smaller)
        return to_frames(pixels_CFHW)


def _encode(vae: VideoAutoencoder, *, frames_FHW3: Frames) -> Tensor:
    """Latents of frames that were rendered, 4k + 1 of them."""
    return vae.encode(chunks_of(torch.from_numpy(frames_FHW3).permute(3, 0, 1, 2)))


def _encoded(cached: CachedRequest) -> EncodedRequest:
    return EncodedRequest(
        request=cached.request,
        prompt=read_text(cached.prompt_path),
        negative=read_text(cached.negative_path),
        cond_CKHW=None if cached.start is None else read_latents(cached.start.path),
    )
