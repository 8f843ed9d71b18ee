"""The arithmetic of the refinement pass, at the released model's sizes; the pixels are golden cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longcat_tune.flow.schedule import refinement_sigmas
from longcat_tune.sampling.refine import REFINED_SIZES, Layout, refined_size


def test_93_frames_become_186_in_48_latents() -> None:
    layout = Layout.of(186)
    assert (layout.num_cond_latents, layout.num_noise_latents, layout.padded_frames) == (0, 48, 192)
    decoded = np.arange(189)[:, None, None, None]
    assert layout.cut(decoded)[:, 0, 0, 0].tolist() == list(range(186))


def test_a_start_image_is_repeated_until_it_fills_four_latents() -> None:
    layout = Layout.of(186, given_frames=1)
    assert (layout.num_cond_latents, layout.front, layout.num_noise_latents) == (4, 12, 48)
    padded = layout.pad(torch.arange(186.0).view(1, 186, 1, 1))[0, :, 0, 0]
    assert padded[:13].tolist() == [0.0] * 13
    assert padded[-1] == 185
    assert len(padded) == layout.padded_frames == 13 + 192


@pytest.mark.parametrize(
    ("size", "refined"),
    [
        ((832, 480), (1280, 704)),
        ((480, 832), (704, 1280)),
        ((640, 640), (960, 960)),
        ((640, 608), (960, 960)),
    ],
)
def test_the_nearest_shape_of_the_720p_class_is_taken(
    size: tuple[int, int], refined: tuple[int, int]
) -> None:
    assert refined_size(*size) == refined


def test_every_size_can_be_divided_into_sparse_blocks() -> None:
    assert all(side % 64 == 0 for size in REFINED_SIZES.values() for side in size)


def test_the_pass_takes_the_last_five_of_fifty_steps() -> None:
    steps = refinement_sigmas(50, 0.5)[:-1] * 1000
    assert steps.tolist() == pytest.approx([500, 443.02, 343.47, 207.77, 11.87], abs=0.01)
