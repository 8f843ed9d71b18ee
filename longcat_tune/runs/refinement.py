"""The refinement pass of a render: to the 720p class with twice the frames, by Meituan's refinement LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from longcat_tune.data.cache import LatentJob
from longcat_tune.flow.noising import mix, standard_noise
from longcat_tune.flow.schedule import refinement_sigmas
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.vae import VideoAutoencoder, chunks_of
from longcat_tune.sampling.denoise import OnStep, TextCondition, denoise
from longcat_tune.sampling.pictures import Frames, to_frames
from longcat_tune.sampling.refine import GRID_STEPS, START_SIGMA, Layout, enlarge, refined_size
from longcat_tune.types import Bucket

UseVae = Callable[[Callable[[VideoAutoencoder], Tensor]], Tensor]
"""Does something with the VAE."""


@dataclass(frozen=True, slots=True)
class Refiner:
    """Refines renders.

    Attributes:
        lend_lora: entered around the denoising: lends the model the refinement LoRA.
        read_start: gives chunks of frames_CFHW uint8 of a start image.
        compute: as of the renders.
        shift: as of the renders.
        device: where the model is.
    """

    lend_lora: Callable[[], AbstractContextManager[None]]
    read_start: Callable[[LatentJob], Iterator[Tensor]]
    compute: Callable[[], AbstractContextManager[object]]
    shift: float
    device: torch.device

    @property
    def num_steps(self) -> int:
        """Steps that a render takes more."""
        return len(self.sigmas) - 1

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the pass."""
        return refinement_sigmas(GRID_STEPS, START_SIGMA, self.shift)

    def refine(
        self,
        model: LongCatVideoTransformer,
        frames_FHW3: Frames,
        prompt: TextCondition,
        *,
        seed: int,
        start: LatentJob | None,
        use_vae: UseVae,
        on_step: OnStep,
    ) -> Frames:
        """Refine one video.

        Args:
            model: the transformer.
            frames_FHW3: of the render.
            prompt: of the render.
            seed: of the noise.
            start: its start image, which the first frame then is at the new size, too.
            use_vae: for encoding and decoding.
            on_step: called after every step.

        Returns:
            frames_FHW3, larger and twice as many.
        """
        size = refined_size(frames_FHW3.shape[2], frames_FHW3.shape[1])
        pixels_CFHW = enlarge(frames_FHW3, size)
        layout = Layout.of(pixels_CFHW.shape[1], given_frames=0 if start is None else 1)
        padded_CFHW = layout.pad(pixels_CFHW)
        clean_CTHW = use_vae(lambda vae: vae.encode(chunks_of(_as_bytes(padded_CFHW))))
        noise_CTHW = standard_noise(tuple(clean_CTHW.shape), Generator().manual_seed(seed))
        start_sigma = torch.tensor([START_SIGMA])
        latents_BCTHW = mix(clean_CTHW.cpu()[None], noise_CTHW[None], start_sigma)
        if start is not None:
            image_CFHW = next(self.read_start(replace(start, bucket=Bucket(*size, 1))))
            given_CFHW = image_CFHW.repeat(1, layout.front + 1, 1, 1)
            latents_BCTHW[0, :, : layout.num_cond_latents] = use_vae(
                lambda vae: vae.encode(chunks_of(given_CFHW))
            ).cpu()
        with self.lend_lora(), self.compute():
            refined_BCTHW = denoise(
                model,
                latents_BCTHW.to(self.device),
                self.sigmas,
                prompt,
                num_cond_latents=layout.num_cond_latents,
                on_step=on_step,
            )
        return layout.cut(to_frames(use_vae(lambda vae: vae.decode(refined_BCTHW[0]))))


def _as_bytes(pixels_CFHW: Tensor) -> Tensor:
    return ((pixels_CFHW + 1) * 127.5).round().clamp(0, 255).byte()
