"""Weights are the published ones, and the bell's mean is 1 under what is trained."""

from __future__ import annotations

import math

import pytest
import torch

from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.weighting import weighting

SIGMAS = torch.tensor([0.05, 0.5, 0.9, 1.0])


def test_without_weighting_all_count_alike() -> None:
    assert torch.equal(weighting("none", SigmaDensity())(SIGMAS), torch.ones(4))


def test_sigma_sqrt_is_one_over_sigma_squared() -> None:
    got = weighting("sigma_sqrt", SigmaDensity())(SIGMAS)
    torch.testing.assert_close(got, torch.tensor([400.0, 4.0, 1 / 0.81, 1.0]))


def test_the_bell_equals_diffsynths_table_of_a_thousand_timesteps() -> None:
    u = torch.linspace(1, 0, 1001)[:-1]
    timesteps = 1000 * 5 * u / (1 + 4 * u)
    y = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    table = (y - y.min()) * (1000 / (y - y.min()).sum())
    got = weighting("bell", SigmaDensity("uniform", shift=5.0))(timesteps / 1000)
    torch.testing.assert_close(got, table, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "density",
    [SigmaDensity(), SigmaDensity("beta", min_sigma=0.2), SigmaDensity(sigmoid_scale=2.0, max_sigma=0.9)],
)
def test_the_bell_has_mean_one_under_the_training_density(density: SigmaDensity) -> None:
    sigma = density.sample(200_000, torch.Generator().manual_seed(0))
    weights = weighting("bell", density)(sigma)
    assert weights.mean().item() == pytest.approx(1, abs=5e-3)
    assert weights.min() >= 0
    ends = weighting("bell", density)(torch.tensor([0.0, 0.5, 1.0]))
    assert ends[0] == ends[2] < 1e-6
    ratio = (math.exp(-0.02) - math.exp(-0.5)) / (1 - math.exp(-0.5))
    torch.testing.assert_close(
        weighting("bell", density)(torch.tensor([0.6])) / ends[1], torch.tensor([ratio])
    )
