"""Decoded pixels to what a person looks at: uint8 frames and a grid of frames; writes no video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

FRAMES_ACROSS = 5
CELL_HEIGHT = 192
LABEL_HEIGHT = 18
INK = (235, 235, 235)
PAPER = (24, 24, 24)

Frames = NDArray[np.uint8]


def to_frames(pixels_CFHW: Tensor) -> Frames:
    """Pixels in [-1, 1] to uint8 [F, H, W, 3]."""
    scaled = (pixels_CFHW.float().clamp(-1, 1) + 1) * 127.5
    frames: Frames = scaled.round().byte().permute(1, 2, 3, 0).cpu().numpy()
    return frames


def evenly_spaced(frames_FHW3: Frames) -> Frames:
    """Copy the few frames of a video that a grid shows, from the first to the last."""
    count = min(FRAMES_ACROSS, len(frames_FHW3))
    picked: Frames = frames_FHW3[np.linspace(0, len(frames_FHW3) - 1, count).round().astype(int)]
    return picked


def frame_grid(rows: Sequence[tuple[str, Frames]]) -> Image.Image:
    """Lay out the frames of each video across, one labelled video per row.

    Args:
        rows: label and frames_FHW3 from `evenly_spaced` of each video, at least one.

    Returns:
        An RGB picture.
    """
    strips = [_strip(label, frames_FHW3) for label, frames_FHW3 in rows]
    grid = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        grid.paste(strip, (0, top))
        top += strip.height
    return grid


def _strip(label: str, frames_FHW3: Frames) -> Image.Image:
    count, height, width, _ = frames_FHW3.shape
    cell = (max(1, round(width * CELL_HEIGHT / height)), CELL_HEIGHT)
    strip = Image.new("RGB", (cell[0] * count, cell[1] + LABEL_HEIGHT), PAPER)
    ImageDraw.Draw(strip).text((4, 3), label, fill=INK)
    for column, picture_HW3 in enumerate(frames_FHW3):
        strip.paste(Image.fromarray(picture_HW3).resize(cell), (column * cell[0], LABEL_HEIGHT))
    return strip
