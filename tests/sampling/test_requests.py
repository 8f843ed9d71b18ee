"""Starting latents: the seed alone decides the noise, and condition latents stand in front."""

from __future__ import annotations

import torch

from longcat_tune.sampling.requests import EncodedRequest, RenderRequest, starting_latents
from longcat_tune.types import Bucket, TextFeatures

REQUEST = RenderRequest("dance", "a dance", "", Bucket(64, 32, 9), 4, 4.0, seed=7)
FEATURES = TextFeatures(torch.zeros(1, 8))


def test_noise_has_the_bucket_s_latent_shape_and_comes_from_the_seed_alone() -> None:
    first = starting_latents(EncodedRequest(REQUEST, FEATURES, FEATURES), channels=16)
    torch.manual_seed(99)
    assert first.shape == (1, 16, 3, 4, 8)
    assert torch.equal(first, starting_latents(EncodedRequest(REQUEST, FEATURES, FEATURES), channels=16))


def test_condition_latents_replace_the_first_frames_only() -> None:
    cond = torch.full((16, 1, 4, 8), 5.0)
    free = starting_latents(EncodedRequest(REQUEST, FEATURES, FEATURES), channels=16)
    pinned = starting_latents(EncodedRequest(REQUEST, FEATURES, FEATURES, cond), channels=16)
    assert pinned[:, :, 0].eq(5).all()
    assert torch.equal(pinned[:, :, 1:], free[:, :, 1:])


def test_file_names_carry_size_and_seed() -> None:
    assert REQUEST.file_stem == "dance_64x32_7"
