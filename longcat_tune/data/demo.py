"""Made-up clips: one coloured shape that moves over a plain background, with the caption that says so.

Only numpy: it knows neither files nor torch, and draws the same frames for the same scene on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (38, 166, 65),
    "blue": (38, 84, 214),
    "yellow": (247, 214, 48),
    "purple": (138, 43, 190),
    "cyan": (40, 196, 214),
    "white": (242, 242, 242),
    "black": (18, 18, 18),
}

SHAPE_SIDES: dict[str, int] = {"circle": 0, "square": 4, "triangle": 3}
"""Sides of a regular polygon with its first side at the bottom; 0: round."""

MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up and left": (-1, -1),
    "up and right": (1, -1),
    "down and left": (-1, 1),
    "down and right": (1, 1),
    "still": (0, 0),
}
"""Steps along x and y; y grows downwards, as rows do."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip before it has a size or a length.

    Attributes:
        shape: a key of SHAPE_SIDES.
        colour: a key of COLOURS.
        motion: a key of MOTIONS.
        background: a key of COLOURS.
        x: where the shape is half-way through the clip, in 0..1: 0 touches the left edge, 1 the right one.
        y: the same from the upper edge to the lower one.
        travel: the way it covers in the whole clip, as a share of what x or y can span.
        size: radius of the circle around the shape, as a share of the frame's shorter side.
        angle: turn of the shape in radians.
    """

    shape: str
    colour: str
    motion: str
    background: str
    x: float = 0.5
    y: float = 0.5
    travel: float = 0.6
    size: float = 0.2
    angle: float = 0.0

    @property
    def caption(self) -> str:
        """`a red circle moves right on a blue background`."""
        verb = "rests" if self.motion == "still" else f"moves {self.motion}"
        return f"a {self.colour} {self.shape} {verb} on a {self.background} background"


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene whose shape stays inside the frame and differs from its background."""
    colour, background = rng.choice(list(COLOURS), size=2, replace=False)
    motion = str(rng.choice(list(MOTIONS)))
    travel = rng.uniform(0.3, 0.65)
    margin_x, margin_y = (travel / 2 if step else 0.0 for step in MOTIONS[motion])
    return Scene(
        shape=str(rng.choice(list(SHAPE_SIDES))),
        colour=str(colour),
        motion=motion,
        background=str(background),
        x=rng.uniform(margin_x, 1 - margin_x),
        y=rng.uniform(margin_y, 1 - margin_y),
        travel=travel,
        size=rng.uniform(0.14, 0.26),
        angle=rng.uniform(-0.15, 0.15),
    )


def demo_scenes(count: int = 8) -> tuple[Scene, ...]:
    """The clips of the quickstart: always the same, every shape, colour and straight motion among eight."""
    shapes, colours, motions = list(SHAPE_SIDES), list(COLOURS), ("right", "left", "down", "up")
    return tuple(
        Scene(
            shape=shapes[index % len(shapes)],
            colour=colours[index % len(colours)],
            motion=motions[index % len(motions)],
            background=colours[(index + 2) % len(colours)],
            size=0.18 + 0.02 * (index % 3),
        )
        for index in range(count)
    )


def render(scene: Scene, width: int, height: int, num_frames: int) -> NDArray[np.uint8]:
    """Draw a scene with antialiased edges.

    Args:
        scene: what to draw.
        width: in pixels.
        height: in pixels.
        num_frames: spread evenly over the motion; a single frame shows its middle.

    Returns:
        frames_FHW3.
    """
    background_3 = np.array(COLOURS[scene.background], dtype=np.float32)
    colour_3 = np.array(COLOURS[scene.colour], dtype=np.float32)
    frames_FHW3 = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    frames_FHW3[:] = background_3.astype(np.uint8)
    radius = scene.size * min(width, height)
    for index, frame_HW3 in enumerate(frames_FHW3):
        moment = index / (num_frames - 1) - 0.5 if num_frames > 1 else 0.0
        centre_x, centre_y = _centre(scene, moment, width, height, radius)
        # Only the box around the shape is computed: the rest is background, and large frames stay fast.
        left, right = _span(centre_x, radius, width)
        top, bottom = _span(centre_y, radius, height)
        rows_H1 = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - centre_y
        columns_1W = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - centre_x
        cover_HW1 = _coverage(scene.shape, columns_1W, rows_H1, radius, scene.angle)[..., None]
        mixed_HW3 = background_3 + cover_HW1 * (colour_3 - background_3)
        frame_HW3[top:bottom, left:right] = np.rint(mixed_HW3).astype(np.uint8)
    return frames_FHW3


def _centre(scene: Scene, moment: float, width: int, height: int, radius: float) -> tuple[float, float]:
    """Centre of the shape in pixels; moment runs from -0.5 to 0.5."""
    step_x, step_y = MOTIONS[scene.motion]
    x = scene.x + step_x * scene.travel * moment
    y = scene.y + step_y * scene.travel * moment
    return radius + x * (width - 2 * radius), radius + y * (height - 2 * radius)


def _span(centre: float, radius: float, limit: int) -> tuple[int, int]:
    """First pixel and one past the last that the shape can touch."""
    return max(0, math.floor(centre - radius) - 1), min(limit, math.ceil(centre + radius) + 1)


def _coverage(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float, angle: float
) -> NDArray[np.float32]:
    """Share of each pixel inside the shape, from the distance of its centre to the nearest edge."""
    distance = np.hypot(x, y)
    sides = SHAPE_SIDES[shape]
    if sides == 0:
        return np.clip(0.5 + radius - distance, 0, 1)
    # Every side of a regular polygon is the first one turned: fold all directions onto it.
    sector = 2 * math.pi / sides
    direction = np.arctan2(y, x) - math.pi / 2 - angle
    folded = (direction + sector / 2) % sector - sector / 2
    apothem = radius * math.cos(sector / 2)
    return np.clip(0.5 + apothem - distance * np.cos(folded), 0, 1)
