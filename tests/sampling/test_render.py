"""A request becomes the right walk: given frames stay, continuation uses the authors' schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longcat_tune.sampling.render import count_steps, render_latents, render_sigmas
from longcat_tune.sampling.requests import EncodedRequest, RenderRequest, continued
from longcat_tune.types import Bucket, TextFeatures
from tests.sampling.test_denoise import small_model

REQUEST = RenderRequest("dance", "a dance", "", Bucket(32, 32, 25), 4, 1.0, seed=7)
FEATURES = TextFeatures(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
COND = torch.full((4, 4, 4, 4), 0.5)


def render(encoded: EncodedRequest) -> torch.Tensor:
    return render_latents(small_model(), encoded, channels=4, shift=12.0, device=torch.device("cpu"))


def test_a_continuation_keeps_its_given_frames_and_differs_with_them() -> None:
    encoded = EncodedRequest(REQUEST, FEATURES, FEATURES, COND)
    latents = render(encoded)
    assert latents.shape == (4, 7, 4, 4)
    assert torch.equal(latents[:, :4], COND)
    other = render(replace(encoded, cond_CKHW=-COND))
    assert not torch.allclose(latents[:, 4:], other[:, 4:], atol=1e-3)


def test_a_later_segment_has_other_noise_and_the_given_frames() -> None:
    first = EncodedRequest(REQUEST, FEATURES, FEATURES)
    second = continued(first, COND, segment=1)
    assert (second.request.seed, second.num_cond_latents, second.num_given_frames) == (8, 4, 13)
    assert first.request.seed == 7


def test_continuations_take_the_authors_extra_steps_at_low_noise_but_never_distilled() -> None:
    request = replace(REQUEST, num_steps=50)
    assert len(render_sigmas(request, shift=12.0, continues=False)) - 1 == 50
    assert len(render_sigmas(request, shift=12.0, continues=True)) - 1 == 56
    distilled = replace(request, num_steps=16, distilled=True)
    sigmas = render_sigmas(distilled, shift=12.0, continues=True)
    assert len(sigmas) - 1 == 16
    assert sigmas[-2].item() * 1000 == pytest.approx(510.638, abs=1e-3)


def test_steps_and_frames_of_all_segments_are_counted() -> None:
    long = replace(REQUEST, num_steps=50, size=Bucket(32, 32, 93), num_segments=3)
    assert count_steps(long, shift=12.0) == 50 + 56 + 56
    assert long.num_frames == 93 + 80 + 80
