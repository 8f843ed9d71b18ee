"""Training's noise levels follow the stated densities: medians and tails against closed forms."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.errors import ConfigError
from longcat_tune.flow.density import DensityKind, SigmaDensity
from longcat_tune.flow.schedule import unshift_sigma

COUNT = 200_000


def draw(density: SigmaDensity) -> torch.Tensor:
    return density.sample(COUNT, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("density", "quarter"),
    [
        # sigmoid of the normal's lower quartile -0.67449, and of twice that
        (SigmaDensity(), 0.33747),
        (SigmaDensity(sigmoid_scale=2.0), 0.20602),
        (SigmaDensity(kind="uniform"), 0.25),
        # the root of 3 u^2 - 2 u^3 = 1/4
        (SigmaDensity(kind="beta"), 0.32635),
    ],
)
def test_quartiles_before_the_shift(density: SigmaDensity, quarter: float) -> None:
    u = unshift_sigma(draw(density), 12.0)
    assert u.quantile(0.25).item() == pytest.approx(quarter, abs=4e-3)
    assert u.median().item() == pytest.approx(0.5, abs=4e-3)
    assert u.quantile(0.75).item() == pytest.approx(1 - quarter, abs=4e-3)


def test_the_shift_moves_the_median_to_twelve_thirteenths() -> None:
    assert draw(SigmaDensity()).median().item() == pytest.approx(12 / 13, abs=2e-3)


def test_the_generator_is_the_only_randomness() -> None:
    torch.manual_seed(1)
    first = draw(SigmaDensity())
    torch.manual_seed(2)
    assert torch.equal(first, draw(SigmaDensity()))


def test_without_a_window_draws_are_what_they_always_were() -> None:
    # Runs made before there were windows must go on with the same numbers.
    expected = {
        "logit_normal": [0.9824657440185547, 0.8994815945625305, 0.5759372711181641],
        "uniform": [0.9220069646835327, 0.9754743576049805, 0.5380606651306152],
        "beta": [0.9220069646835327, 0.8419369459152222, 0.9202151894569397],
    }
    for kind, sigmas in expected.items():
        density = SigmaDensity(kind=kind)  # type: ignore[arg-type]
        got = density.sample(3, torch.Generator().manual_seed(0))
        assert got.tolist() == pytest.approx(sigmas, rel=1e-6, abs=0)


WINDOWS = [(0.5, 0.9), (0.0, 0.3), (0.95, 1.0), (0.91, 0.94)]


@pytest.mark.parametrize("kind", ["logit_normal", "uniform", "beta"])
@pytest.mark.parametrize(("low", "high"), WINDOWS)
def test_a_window_holds_the_same_density_as_draws_that_fall_into_it(
    kind: DensityKind, low: float, high: float
) -> None:
    whole = SigmaDensity(kind).sample(3_000_000, torch.Generator().manual_seed(1))
    inside = whole[(whole >= low) & (whole <= high)]
    got = draw(SigmaDensity(kind, min_sigma=low, max_sigma=high))
    assert got.dtype == torch.float32
    assert low <= got.min() < got.max() <= high
    shares = torch.tensor([0.1, 0.5, 0.9])
    # Five standard errors of a quantile, whose density is at least half the mean one.
    allowed = 10 * 0.5 / min(len(inside), COUNT) ** 0.5 * (high - low)
    torch.testing.assert_close(got.quantile(shares), inside[:COUNT].quantile(shares), atol=allowed, rtol=0)


@pytest.mark.parametrize("kind", ["logit_normal", "uniform", "beta"])
@pytest.mark.parametrize(("low", "high"), [(0.999, 1.0), (0.0, 1e-5), (0.3, 0.3 + 1e-6)])
def test_windows_in_the_far_tails_are_drawn_from_too(kind: DensityKind, low: float, high: float) -> None:
    density = SigmaDensity(kind, min_sigma=low, max_sigma=high)
    got = draw(density)
    assert low <= got.min() < got.max() <= high + 1e-7
    quantiles = density.quantile(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert bool((quantiles.diff() >= 0).all())


def test_a_window_takes_one_number_per_draw_from_the_generator() -> None:
    density = SigmaDensity(min_sigma=0.4)
    generator = torch.Generator().manual_seed(3)
    both = torch.cat([density.sample(2, generator), density.sample(3, generator)])
    assert torch.equal(both, density.sample(5, torch.Generator().manual_seed(3)))


def test_a_window_without_density_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow_min_sigma \(0\) and flow_max_sigma \(0\.1\) leave next to"):
        SigmaDensity(sigmoid_scale=0.1, max_sigma=0.1)
