"""Frames and grids: values, sizes and order."""

from __future__ import annotations

import numpy as np
import torch

from longcat_tune.sampling.pictures import CELL_HEIGHT, LABEL_HEIGHT, evenly_spaced, frame_grid, to_frames


def test_pixels_become_rounded_bytes_with_channels_last() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0]).view(1, 4, 1, 1).expand(3, 4, 2, 5)
    frames = to_frames(pixels)
    assert frames.shape == (4, 2, 5, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255]


def test_a_grid_shows_first_and_last_frame_of_every_video_from_left_to_right() -> None:
    video = np.zeros((9, 32, 64, 3), np.uint8)
    video[0], video[-1] = 200, 100
    grid = np.asarray(frame_grid([("one", evenly_spaced(video)), ("two", evenly_spaced(video))]))
    row = CELL_HEIGHT + LABEL_HEIGHT
    assert grid.shape == (2 * row, 5 * 2 * CELL_HEIGHT, 3)
    middle = row + LABEL_HEIGHT + CELL_HEIGHT // 2
    assert grid[middle, 5, 0] == 200
    assert grid[middle, -5, 0] == 100
