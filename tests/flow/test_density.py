"""Training's noise levels follow the stated densities: medians and tails against closed forms."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.flow.density import SigmaDensity
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
