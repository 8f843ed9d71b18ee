"""The plan's bytes per pixel of the VAE against diffusers' model at full size, counted without memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longcat_tune.memory.budget_parts import (
    BASE_WIDTH,
    DECODE_BYTES_PER_PIXEL,
    ENCODE_BYTES_PER_PIXEL,
    RELEASED_TEXT_ENCODER,
    RELEASED_VAE_PARAMETERS,
    Picture,
    TextEncoderSize,
    VaeSize,
    text_budget,
)
from longcat_tune.model.vae import VideoAutoencoder
from tests.memory.counting import counting, materialize

PICTURE = Picture("208x120@9", 208, 120, 9)


def released_vae() -> nn.Module:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return AutoencoderKLWan().to(torch.bfloat16).eval().requires_grad_(requires_grad=False)


def test_the_vae_takes_the_predicted_bytes_per_pixel():
    module = released_vae()
    assert sum(parameter.numel() for parameter in module.parameters()) == RELEASED_VAE_PARAMETERS
    size = VaeSize(RELEASED_VAE_PARAMETERS, BASE_WIDTH, element_bytes=2)
    with counting() as count:
        materialize(module)
        vae = VideoAutoencoder(module)
        vae._device = torch.device("cpu")
        before = count.restart()
        frames = (
            torch.empty(3, number, PICTURE.height, PICTURE.width, dtype=torch.uint8) for number in (1, 4, 4)
        )
        latents = vae.encode(frames)
        encoding = count.peak - before
        before = count.restart()
        pixels = vae.decode(latents)
        decoding = count.peak - before - pixels.nbytes
    predicted = size.working_bytes(ENCODE_BYTES_PER_PIXEL, PICTURE.pixels)
    assert predicted == pytest.approx(encoding, rel=0.05)
    assert size.working_bytes(DECODE_BYTES_PER_PIXEL, PICTURE.pixels) == pytest.approx(decoding, rel=0.05)


def test_a_wider_or_finer_vae_takes_more_in_proportion():
    one = VaeSize(0, BASE_WIDTH, element_bytes=2).working_bytes(1000, 10)
    assert VaeSize(0, BASE_WIDTH // 2, element_bytes=4).working_bytes(1000, 10) == one == 10_000


def test_the_text_encoder_is_held_by_the_device_and_on_its_way_by_the_host():
    eight = TextEncoderSize(RELEASED_TEXT_ENCODER.parameters, 1, heads=64)
    sixteen, halved = (text_budget(one, imports_bytes=0) for one in (RELEASED_TEXT_ENCODER, eight))
    assert sixteen.peak("device") - halved.peak("device") == RELEASED_TEXT_ENCODER.parameters
    assert sixteen.peak("host") == 2 * RELEASED_TEXT_ENCODER.parameters
