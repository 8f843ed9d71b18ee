"""The numbers are those of their formulas on pictures where these can be told."""

from __future__ import annotations

import numpy as np
import pytest

from longcat_tune.sampling.numbers import psnr, sharpness, temporal_consistency


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 50, 3), dtype=np.uint8)


def test_consistency_is_one_for_a_still_and_near_zero_for_noise() -> None:
    still = noise(1).repeat(4, 0)
    assert temporal_consistency(still) == pytest.approx(1)
    assert abs(temporal_consistency(noise(4))) < 0.05


def test_brightness_alone_is_no_inconsistency_and_plain_pictures_are_alike() -> None:
    darker = np.stack([noise(1)[0] // 2, noise(1)[0] // 4 * 2])
    assert temporal_consistency(darker) > 0.999
    assert temporal_consistency(np.full((3, 8, 8, 3), [[[[7, 7, 7]]]], np.uint8)) == 1.0
    assert temporal_consistency(noise(1)) is None


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    dot = np.zeros((1, 5, 5, 3), np.uint8)
    dot[0, 2, 2] = 10
    # Over the nine inner pixels: -40 at the dot, 10 at its four neighbours.
    values = np.array([-40, 10, 10, 10, 10, 0, 0, 0, 0])
    assert sharpness(dot) == pytest.approx(values.var(), rel=1e-4)
    assert sharpness(np.full((2, 9, 9, 3), 80, np.uint8)) == pytest.approx(0, abs=1e-6)


def test_psnr_of_equal_pictures_is_the_highest_and_of_a_known_error_its_formula() -> None:
    picture = noise(1)[0] // 2
    assert psnr(picture, picture) == 99
    assert psnr(picture, picture + 10) == pytest.approx(20 * np.log10(255 / 10))
