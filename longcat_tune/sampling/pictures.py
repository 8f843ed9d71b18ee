"""Decoded pixels to what a person looks at: frames, strips, grids and contact sheets; writes no video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

FRAMES_ACROSS = 5
CELL_HEIGHT = 192
LABEL_HEIGHT = 18
SIDE_WIDTH = 200
INK = (235, 235, 235)
PAPER = (24, 24, 24)
NOTHING = (48, 48, 48)

Frames = NDArray[np.uint8]


def to_frames(pixels_CFHW: Tensor) -> Frames:
    """Pixels in [-1, 1] to uint8 [F, H, W, 3]."""
    scaled = (pixels_CFHW.float().clamp(-1, 1) + 1) * 127.5
    frames: Frames = scaled.round().byte().permute(1, 2, 3, 0).cpu().numpy()
    return frames


def evenly_spaced(count: int) -> list[int]:
    """Which frames of a video of so many stand for it, from the first to the last."""
    shown = min(FRAMES_ACROSS, count)
    return [int(index) for index in np.linspace(0, count - 1, shown).round()]


def frame_strip(frames_FHW3: Frames) -> Image.Image:
    """Lay out all given frames across, small."""
    count, height, width, _ = frames_FHW3.shape
    cell = (max(1, round(width * CELL_HEIGHT / height)), CELL_HEIGHT)
    strip = Image.new("RGB", (cell[0] * count, cell[1]), PAPER)
    for column, picture_HW3 in enumerate(frames_FHW3):
        strip.paste(Image.fromarray(picture_HW3).resize(cell), (column * cell[0], 0))
    return strip


def strip_cell(strip: Image.Image, count: int, index: int) -> Image.Image:
    """Cut one of its `count` frames out of a strip."""
    width = strip.width // count
    return strip.crop((index * width, 0, (index + 1) * width, strip.height))


def frame_grid(rows: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Stack labelled strips.

    Args:
        rows: label and strip of each video, at least one.
    """
    width = max(strip.width for _, strip in rows)
    grid = Image.new("RGB", (width, sum(strip.height + LABEL_HEIGHT for _, strip in rows)), PAPER)
    draw = ImageDraw.Draw(grid)
    top = 0
    for label, strip in rows:
        draw.text((4, top + 3), drawable(label), fill=INK)
        grid.paste(strip, (0, top + LABEL_HEIGHT))
        top += LABEL_HEIGHT + strip.height
    return grid


def contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]]
) -> Image.Image:
    """Set one picture of each video under the moment it was made at.

    Args:
        columns: labels of the moments, at least one.
        rows: label of a video and its picture per moment; None where there is none.
    """
    in_columns = zip(*(cells for _, cells in rows), strict=True)
    widths = [
        max((one.width for one in cells if one is not None), default=CELL_HEIGHT) for cells in in_columns
    ]
    size = (SIDE_WIDTH + sum(widths), LABEL_HEIGHT + len(rows) * CELL_HEIGHT)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, cells) in enumerate(rows):
        top, left = LABEL_HEIGHT + row * CELL_HEIGHT, SIDE_WIDTH
        draw.text((4, top + 3), drawable(label), fill=INK)
        for column, cell in enumerate(cells):
            if row == 0:
                draw.text((left + 4, 3), drawable(columns[column]), fill=INK)
            if cell is None:
                draw.rectangle((left, top, left + widths[column] - 1, top + CELL_HEIGHT - 1), fill=NOTHING)
            else:
                sheet.paste(cell, (left, top))
            left += widths[column]
    return sheet


def drawable(text: str) -> str:
    """The text as far as Pillow's own font has letters for it; a run of others becomes one dot."""
    kept = "".join(letter if letter.isprintable() and ord(letter) < 256 else "·" for letter in text)
    while "··" in kept:
        kept = kept.replace("··", "·")
    return kept
