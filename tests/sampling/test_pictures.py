"""Frames, strips, grids and contact sheets: values, sizes and order."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from longcat_tune.sampling.pictures import (
    CELL_HEIGHT,
    LABEL_HEIGHT,
    NOTHING,
    SIDE_WIDTH,
    contact_sheet,
    drawable,
    evenly_spaced,
    frame_grid,
    frame_strip,
    strip_cell,
    to_frames,
)


def plain(value: int, width: int = 64) -> Image.Image:
    return Image.new("RGB", (width, CELL_HEIGHT), (value, value, value))


def test_pixels_become_rounded_bytes_with_channels_last() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0]).view(1, 4, 1, 1).expand(3, 4, 2, 5)
    frames = to_frames(pixels)
    assert frames.shape == (4, 2, 5, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255]


def test_a_strip_goes_from_the_first_to_the_last_frame() -> None:
    assert evenly_spaced(93) == [0, 23, 46, 69, 92]
    assert evenly_spaced(1) == [0]
    video = (
        np.arange(0, 180, 20, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(64, 2).repeat(3, 3)
    )
    strip = frame_strip(video[evenly_spaced(9)])
    assert strip.size == (5 * 2 * CELL_HEIGHT, CELL_HEIGHT)
    shown = [strip_cell(strip, 5, index).getpixel((9, 9)) for index in range(5)]
    assert shown == [(value,) * 3 for value in (0, 40, 80, 120, 160)]


def test_a_grid_has_one_labelled_strip_under_the_other() -> None:
    grid = np.asarray(frame_grid([("one", plain(200)), ("two", plain(100, width=90))]))
    row = CELL_HEIGHT + LABEL_HEIGHT
    assert grid.shape == (2 * row, 90, 3)
    assert grid[LABEL_HEIGHT + 5, 5, 0] == 200
    assert grid[row + LABEL_HEIGHT + 5, 85, 0] == 100
    assert (grid[:LABEL_HEIGHT] > 150).any()


def test_a_contact_sheet_has_videos_down_and_moments_across() -> None:
    rows = [("one", [plain(10), plain(20)]), ("two", [None, plain(40)])]
    sheet = np.asarray(contact_sheet(["step 0", "step 5"], rows))
    assert sheet.shape == (LABEL_HEIGHT + 2 * CELL_HEIGHT, SIDE_WIDTH + 128, 3)
    middles = [LABEL_HEIGHT + CELL_HEIGHT // 2, LABEL_HEIGHT + CELL_HEIGHT * 3 // 2]
    assert sheet[middles, SIDE_WIDTH + 5, 0].tolist() == [10, NOTHING[0]]
    assert sheet[middles, SIDE_WIDTH + 69, 0].tolist() == [20, 40]


def test_letters_that_the_font_lacks_become_a_dot() -> None:
    assert drawable("Zürich at 夜晚, rain\n") == "Zürich at ·, rain·"
