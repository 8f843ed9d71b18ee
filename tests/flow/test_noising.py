"""The sign of the target, tied to the sampler by round trips."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.flow.loss import flow_loss
from longcat_tune.flow.noising import add_noise, clean_estimate, euler_step
from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.sampling.denoise import TextCondition, denoise

SHAPE = (2, 4, 3, 2, 2)


def clean_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_one_step_with_the_target_as_prediction_reaches_the_clean_latents() -> None:
    clean, noise = clean_and_noise()
    noised = add_noise(clean, noise, torch.tensor([0.3, 0.9]), num_cond_latents=0)
    for sample, sigma in enumerate(noised.sigma_B):
        got = euler_step(noised.latents_BCTHW[sample], noised.target_BCTHW[sample], sigma, torch.tensor(0.0))
        torch.testing.assert_close(got, clean[sample])
    estimate = clean_estimate(noised.latents_BCTHW, noised.target_BCTHW, noised.sigma_B)
    torch.testing.assert_close(estimate, clean)


def test_the_sampler_driven_by_training_targets_reaches_the_clean_latents() -> None:
    clean, noise = clean_and_noise()

    def oracle(latents: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        assert latents.shape == clean.shape
        return clean - noise

    got = denoise(oracle, noise, inference_sigmas(7), TextCondition(torch.zeros(2, 1, 1)))
    torch.testing.assert_close(got, clean, atol=1e-5, rtol=1e-5)


def test_condition_frames_stay_clean_at_timestep_zero_and_out_of_the_loss() -> None:
    clean, noise = clean_and_noise()
    noised = add_noise(clean, noise, torch.tensor([0.5, 0.25]), num_cond_latents=1)
    assert torch.equal(noised.latents_BCTHW[:, :, 0], clean[:, :, 0])
    assert torch.equal(noised.timestep_BT, torch.tensor([[0.0, 500, 500], [0.0, 250, 250]]))
    prediction = noised.target_BCTHW.clone()
    prediction[:, :, 0] += 100
    assert torch.equal(flow_loss(prediction, noised.target_BCTHW, num_cond_latents=1), torch.zeros(2))
    assert flow_loss(prediction, noised.target_BCTHW, num_cond_latents=0).min() > 1000


def test_loss_is_the_mean_square_per_sample() -> None:
    clean, noise = clean_and_noise()
    expected = torch.stack([((a - b) ** 2).mean() for a, b in zip(clean, noise, strict=True)])
    torch.testing.assert_close(flow_loss(clean, noise, num_cond_latents=0), expected)


def test_huber_is_a_square_near_zero_and_a_line_far_away() -> None:
    target = torch.zeros(4, 1, 1, 1, 1)
    error = torch.tensor([1e-6, 0.1, 3.0, 1000.0]).view(4, 1, 1, 1, 1)
    got = flow_loss(error, target, num_cond_latents=0, huber_c=0.1)
    written_out = 2 * 0.1 * ((error.double() ** 2 + 0.1**2).sqrt() - 0.1)
    torch.testing.assert_close(got.double(), written_out.flatten(), rtol=1e-5, atol=1e-15)
    assert got[0].item() == pytest.approx(1e-12, rel=1e-4)
    assert got[3].item() == pytest.approx(200, rel=1e-3)


def test_huber_s_gradient_is_finite_everywhere() -> None:
    error = torch.tensor([0.0, 1e-20, 1e10]).view(3, 1, 1, 1, 1).requires_grad_()
    flow_loss(error, torch.zeros_like(error), num_cond_latents=0, huber_c=0.1).sum().backward()
    assert error.grad is not None
    assert bool(error.grad.isfinite().all())
