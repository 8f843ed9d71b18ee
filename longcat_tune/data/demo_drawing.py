"""Draws the scenes of the made-up world, antialiased; numpy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from longcat_tune.data.demo import ALL_COLOURS, ALL_MOTIONS, ALL_SHAPES, Outline, Scene

EDGE = 3.0
"""Width in pixels over which an edge goes from one colour to the other, as behind a lens: one pixel's width
is detail that latents of stride 8 do not keep."""


def render(
    scene: Scene, width: int, height: int, num_frames: int, *, outline: Outline | None = None
) -> NDArray[np.uint8]:
    """Draw a scene with antialiased edges.

    Args:
        scene: what to draw.
        width: in pixels.
        height: in pixels.
        num_frames: spread evenly over the motion; a single frame shows its middle.
        outline: drawn instead of the scene's shape.

    Returns:
        frames_FHW3.
    """
    background_3 = np.array(ALL_COLOURS[scene.background].rgb, dtype=np.float32)
    colour_3 = np.array(ALL_COLOURS[scene.colour].rgb, dtype=np.float32)
    frames_FHW3 = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    frames_FHW3[:] = background_3.astype(np.uint8)
    radius = scene.size * min(width, height)
    outline = outline or ALL_SHAPES[scene.shape]
    for index, frame_HW3 in enumerate(frames_FHW3):
        pose = ALL_MOTIONS[scene.motion].path(index / (num_frames - 1) - 0.5 if num_frames > 1 else 0.0)
        centre_x = radius + (scene.x + pose.x * scene.travel) * (width - 2 * radius)
        centre_y = radius + (scene.y + pose.y * scene.travel) * (height - 2 * radius)
        # Only the box around the shape is computed: the rest is background, and large frames stay fast.
        left, right = _span(centre_x, radius, width)
        top, bottom = _span(centre_y, radius, height)
        rows_H1 = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - centre_y
        columns_1W = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - centre_x
        cover_HW1 = _coverage(outline, columns_1W, rows_H1, radius * pose.scale, scene.angle + pose.turn)[
            ..., None
        ]
        mixed_HW3 = background_3 + cover_HW1 * (colour_3 - background_3)
        frame_HW3[top:bottom, left:right] = np.rint(mixed_HW3).astype(np.uint8)
    return frames_FHW3


def _span(centre: float, radius: float, limit: int) -> tuple[int, int]:
    """First pixel and one past the last that the shape can touch."""
    margin = math.ceil(EDGE / 2)
    return max(0, math.floor(centre - radius) - margin), min(limit, math.ceil(centre + radius) + margin)


def _coverage(
    outline: Outline, x: NDArray[np.float32], y: NDArray[np.float32], radius: float, angle: float
) -> NDArray[np.float32]:
    """Share of each pixel inside the shape, from the distance of its centre to the nearest edge."""
    distance = np.hypot(x, y)
    if outline.points == 0:
        return np.clip(0.5 + (radius - distance) / EDGE, 0, 1)
    # Fold all directions onto half a sector: a point lies at 0, the inner end of its edge at pi / points.
    # Half-way between two points is below the centre, so that polygons stand on a side.
    half = math.pi / outline.points
    direction = np.arctan2(y, x) - math.pi / 2 - half - angle
    folded = np.abs((direction + half) % (2 * half) - half)
    inner_x, inner_y = (radius * outline.inner * turn for turn in (math.cos(half), math.sin(half)))
    length = math.hypot(radius - inner_x, inner_y)
    normal_x, normal_y = inner_y / length, (radius - inner_x) / length
    outside = (distance * np.cos(folded) - radius) * normal_x + distance * np.sin(folded) * normal_y
    return np.clip(0.5 - outside / EDGE, 0, 1).astype(np.float32)
