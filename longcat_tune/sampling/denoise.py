"""One Euler loop for text-to-video, image-to-video and continuation, from given latents and text.

Works on any function that predicts clean - noise. Source: meituan-longcat/LongCat-Video,
longcat_video/pipeline_longcat_video.py (generate_t2v, generate_i2v, generate_vc).
Letters: B batch, C channels, T latent frames, K condition frames, H rows, W columns, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from longcat_tune.flow.guidance import guide
from longcat_tune.flow.noising import clean_estimate, euler_step
from longcat_tune.flow.schedule import TIMESTEPS


class Transformer(Protocol):
    """What the loop needs of a model; see model.dit for the arguments."""

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        *,
        num_cond_latents: int = 0,
        kv_cache: Any = None,
        return_kv: bool = False,
        skip_cross_attention: bool = False,
    ) -> Any:
        """Predict clean - noise, float32."""


@dataclass(frozen=True, slots=True)
class TextCondition:
    """Padded text of a batch.

    Attributes:
        text_BLD: features.
        mask_BL: 1 = token; None attends to all.
    """

    text_BLD: Tensor
    mask_BL: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Guidance:
    """Two evaluations a step, combined by CFG-zero*.

    Attributes:
        scale: above 1.
        negative: what to move away from; the empty prompt when the user gave none.
    """

    scale: float
    negative: TextCondition


OnStep = Callable[[int, Tensor, Tensor], None]
"""(finished steps, latents_BCTHW, clean latents_BCTHW as the step sees them), with condition frames."""

Predictor = Callable[[Tensor, Tensor, TextCondition], Tensor]
"""(noise frames, scalar sigma, text) -> prediction of the frames the model was given."""


@torch.inference_mode()
def denoise(
    model: Transformer,
    latents_BCTHW: Tensor,
    sigmas: Tensor,
    prompt: TextCondition,
    *,
    guidance: Guidance | None = None,
    num_cond_latents: int = 0,
    use_kv_cache: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk latents from noise to clean; condition frames never change.

    Args:
        model: the transformer.
        latents_BCTHW: noise, with clean condition latents in the first num_cond_latents frames.
        sigmas: falling noise levels [steps + 1] from flow.schedule, the last one 0.
        prompt: what to show.
        guidance: None runs the model once a step.
        num_cond_latents: 0 text-to-video, 1 image-to-video, more for continuation.
        use_kv_cache: evaluate condition frames once. With guidance the result differs from the plain loop on
            purpose: the cached loop balances the two predictions over noise frames only, as the authors do.
        on_step: called after every step.

    Returns:
        Float32 [B, C, T, H, W].

    Raises:
        ValueError: a cache without condition frames.
    """
    if use_kv_cache and num_cond_latents == 0:
        msg = "use_kv_cache (true) needs condition frames; num_cond_latents is 0"
        raise ValueError(msg)
    latents_BCTHW = latents_BCTHW.float()
    cond_BCKHW, noise_BCTHW = latents_BCTHW[:, :, :num_cond_latents], latents_BCTHW[:, :, num_cond_latents:]
    if use_kv_cache:
        predict = _cached_predictor(model, cond_BCKHW, prompt)
    else:
        predict = _plain_predictor(model, cond_BCKHW)

    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=1):
        prediction = predict(noise_BCTHW, sigma, prompt)
        if guidance is not None:
            unwanted = predict(noise_BCTHW, sigma, guidance.negative)
            prediction = guide(prediction, unwanted, guidance.scale)
        noise_prediction = prediction[:, :, -noise_BCTHW.shape[2] :]
        clean_BCTHW = clean_estimate(noise_BCTHW, noise_prediction, sigma.to(noise_BCTHW)[None])
        noise_BCTHW = euler_step(noise_BCTHW, noise_prediction, sigma, sigma_next)
        if on_step is not None:
            on_step(step, *(torch.cat([cond_BCKHW, one], dim=2) for one in (noise_BCTHW, clean_BCTHW)))
    return torch.cat([cond_BCKHW, noise_BCTHW], dim=2)


def _plain_predictor(model: Transformer, cond_BCKHW: Tensor) -> Predictor:
    """Give the model condition and noise frames together; the prediction covers both."""
    num_cond_latents = cond_BCKHW.shape[2]

    def predict(noise_BCTHW: Tensor, sigma: Tensor, text: TextCondition) -> Tensor:
        latents_BCTHW = torch.cat([cond_BCKHW, noise_BCTHW], dim=2)
        timestep_BT = _timesteps(latents_BCTHW, sigma)
        timestep_BT[:, :num_cond_latents] = 0
        prediction: Tensor = model(
            latents_BCTHW, timestep_BT, text.text_BLD, text.mask_BL, num_cond_latents=num_cond_latents
        )
        return prediction

    return predict


def _cached_predictor(model: Transformer, cond_BCKHW: Tensor, prompt: TextCondition) -> Predictor:
    """Evaluate condition frames once, without text, and give the model noise frames only."""
    clean = torch.zeros(cond_BCKHW.shape[0], cond_BCKHW.shape[2], device=cond_BCKHW.device)
    no_text_BLD = torch.zeros_like(prompt.text_BLD)
    _, kv_cache = model(cond_BCKHW, clean, no_text_BLD, return_kv=True, skip_cross_attention=True)

    def predict(noise_BCTHW: Tensor, sigma: Tensor, text: TextCondition) -> Tensor:
        prediction: Tensor = model(
            noise_BCTHW,
            _timesteps(noise_BCTHW, sigma),
            text.text_BLD,
            text.mask_BL,
            num_cond_latents=cond_BCKHW.shape[2],
            kv_cache=kv_cache,
        )
        return prediction

    return predict


def _timesteps(latents_BCTHW: Tensor, sigma: Tensor) -> Tensor:
    batch, _, frames = latents_BCTHW.shape[:3]
    return torch.full((batch, frames), float(sigma * TIMESTEPS), device=latents_BCTHW.device)
