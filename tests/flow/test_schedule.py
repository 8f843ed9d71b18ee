"""The shift, the grids' ends and the messages; the tables themselves are golden cases."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.flow.schedule import inference_sigmas, shift_sigma, timesteps, unshift_sigma


def test_shift_of_twelve_is_the_formula_of_the_release() -> None:
    sigma = torch.tensor([0.0, 0.001, 0.5, 1.0])
    torch.testing.assert_close(shift_sigma(sigma, 12.0), 12 * sigma / (1 + 11 * sigma))
    torch.testing.assert_close(unshift_sigma(shift_sigma(sigma, 12.0), 12.0), sigma)


@pytest.mark.parametrize("steps", [1, 8, 16, 50, 200])
def test_schedules_fall_from_one_to_zero(steps: int) -> None:
    sigmas = inference_sigmas(steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas[1:] < sigmas[:-1]).all()
    if steps > 1:
        assert timesteps(sigmas)[-1].item() == pytest.approx(11.869, abs=1e-3)


def test_sixteen_distilled_steps_are_the_authors_grid() -> None:
    raw = unshift_sigma(inference_sigmas(16, distilled=True)[:-1], 12.0)
    expected = [1, 0.94, 0.88, 0.82, 0.76, 0.70, 0.64, 0.58, 0.50, 0.44, 0.38, 0.32, 0.26, 0.20, 0.14, 0.08]
    torch.testing.assert_close(raw, torch.tensor(expected))


def test_impossible_schedules_say_why() -> None:
    with pytest.raises(ValueError, match=r"num_steps \(0\) must be at least 1"):
        inference_sigmas(0)
    with pytest.raises(ValueError, match=r"num_steps \(51\) must be 1 to 50 with the distilled schedule"):
        inference_sigmas(51, distilled=True)
    with pytest.raises(ValueError, match="cannot be combined"):
        inference_sigmas(8, distilled=True, enhance_high_frequency=True)
