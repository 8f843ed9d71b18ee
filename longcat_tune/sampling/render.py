"""A request to latents: starting noise, schedule and guidance put together."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.sampling.denoise import Guidance, OnStep, TextCondition, Transformer, denoise
from longcat_tune.sampling.requests import EncodedRequest, RenderRequest, starting_latents
from longcat_tune.types import TextFeatures


def render_latents(
    model: Transformer,
    encoded: EncodedRequest,
    *,
    channels: int,
    shift: float,
    device: torch.device,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise one request.

    Args:
        model: the transformer, with or without a LoRA.
        encoded: the request and its encodings.
        channels: latent channels.
        shift: of the sigma schedule, 12 for the released model.
        device: where the model is.
        on_step: called after every step, for a progress bar or a preview.

    Returns:
        Float32 latents [channels, T, H, W] on the device.
    """
    request = encoded.request
    continues = encoded.num_cond_latents > 1
    guidance = None
    if request.guidance > 1:
        guidance = Guidance(request.guidance, text_condition(encoded.negative, device))
    latents_BCTHW = denoise(
        model,
        starting_latents(encoded, channels=channels).to(device),
        render_sigmas(request, shift=shift, continues=continues),
        text_condition(encoded.prompt, device),
        guidance=guidance,
        num_cond_latents=encoded.num_cond_latents,
        # As the authors do: a single condition frame goes along, several are evaluated once.
        use_kv_cache=continues,
        on_step=on_step,
    )
    return latents_BCTHW[0]


def render_sigmas(request: RenderRequest, *, shift: float, continues: bool) -> Tensor:
    """The noise levels of a request.

    Args:
        request: what to render.
        shift: 12 for the released model.
        continues: whether several frames are given; the authors then take more steps at low noise.
    """
    return inference_sigmas(
        request.num_steps,
        shift,
        request.distilled,
        enhance_high_frequency=continues and not request.distilled,
    )


def count_steps(request: RenderRequest, *, shift: float) -> int:
    """Steps of all segments, for a progress bar."""
    first_continues = request.start_image is not None and request.num_start_frames > 1
    continues = [first_continues, *[True] * (request.num_segments - 1)]
    return sum(len(render_sigmas(request, shift=shift, continues=one)) - 1 for one in continues)


def text_condition(features: TextFeatures, device: torch.device) -> TextCondition:
    """Padded text of one request, on the model's device."""
    text_LD, mask_L = features.padded()
    return TextCondition(text_LD[None].to(device), mask_L[None].to(device))
