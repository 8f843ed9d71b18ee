"""A request to latents: starting noise, schedule and guidance put together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.sampling.denoise import Guidance, TextCondition, Transformer, denoise
from longcat_tune.sampling.requests import EncodedRequest, starting_latents
from longcat_tune.types import TextFeatures


def render_latents(
    model: Transformer,
    encoded: EncodedRequest,
    *,
    channels: int,
    shift: float,
    device: torch.device,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Denoise one request.

    Args:
        model: the transformer, with or without a LoRA.
        encoded: the request and its encodings.
        channels: latent channels.
        shift: of the sigma schedule, 12 for the released model.
        device: where the model is.
        on_step: called after every step, for a progress bar.

    Returns:
        Float32 latents [channels, T, H, W] on the device.
    """
    request = encoded.request
    guidance = None
    if request.guidance > 1:
        guidance = Guidance(request.guidance, _condition(encoded.negative, device))
    latents_BCTHW = denoise(
        model,
        starting_latents(encoded, channels=channels).to(device),
        inference_sigmas(request.num_steps, shift),
        _condition(encoded.prompt, device),
        guidance=guidance,
        num_cond_latents=encoded.num_cond_latents,
        # None of the requests has more than one condition frame, where a cache would begin to pay.
        on_step=None if on_step is None else lambda _step, _latents: on_step(),
    )
    return latents_BCTHW[0]


def _condition(features: TextFeatures, device: torch.device) -> TextCondition:
    text_LD, mask_L = features.padded()
    return TextCondition(text_LD[None].to(device), mask_L[None].to(device))
