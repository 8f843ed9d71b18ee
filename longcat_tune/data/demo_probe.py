"""Reads back from frames what a clip of the made-up world shows: plain image analysis, no learnt part.

It is not told what was asked for; numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from longcat_tune.data.demo import ALL_COLOURS, ALL_SHAPES, Names, Scene
from longcat_tune.data.demo_drawing import render

Floats = NDArray[np.floating]
Frames = NDArray[np.uint8]

FARTHEST_COLOUR = 75.0
"""Distance in sRGB steps beyond which a colour is none that has a name."""
LEAST_CONTRAST = 30.0
"""Below this distance from the background a pixel shows the background."""
LEAST_AREA, MOST_AREA = 0.006, 0.5
"""Of the frame; what is smaller or larger is no shape of this world."""
LEAST_WAY = 0.075
"""Of the frame's shorter side; a shape whose centre moves less rests."""
SIZE_CHANGE = 1.7
"""Ratio of the areas at both ends from which on a shape grows or shrinks."""
CURVE = math.pi
"""By so many radians the direction of motion turns one way in a circle or a spiral; these have more."""
UNCLOSED = 0.6
"""A curve that ends so far from its start, as a share of the farthest it came, is a spiral and no circle.

Outwards they end at 1.0, inwards at 0.67, circles at 0.
"""
TURNED = 0.5
"""By so many radians a shape has turned at least that turns."""
DIRECTIONS = 72
"""Rays from a shape's centre along which its outline is measured."""
WAVES_K = np.arange(1, 9)
"""Which Fourier coefficients of an outline tell its shape: two for each of four corners.

The power of what a render adds to them falls about as 1 / K, so each counts K times.
"""
TURNS_S = np.linspace(-math.pi / 2, math.pi / 2, 9)
"""By how many radians a shape may have turned at the end of a clip."""
BLUNTED, SHARPENED = 0.5, 1.2
"""How deep an outline may be as a share of the drawn one's: a codec rounds corners and fills notches.

Less than half of the first is nearer to a circle: regular polygons of five and more corners are.
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a clip shows; None where it is nothing that has a name.

    Attributes:
        shape: a key of ALL_SHAPES.
        colour: a key of ALL_COLOURS.
        motion: a key of ALL_MOTIONS.
        background: a key of ALL_COLOURS.
    """

    shape: str | None
    colour: str | None
    motion: str | None
    background: str | None

    def matches(self, names: Names) -> dict[str, bool]:
        """Which of the names are what is seen."""
        return {field: getattr(self, field) == getattr(names, field) for field in FIELDS}


FIELDS = ("shape", "colour", "motion", "background")


def look(frames_FHW3: Frames) -> Seen:
    """Read a clip.

    Args:
        frames_FHW3: at least three frames.
    """
    pixels_FHW3 = frames_FHW3.astype(np.float64)
    background_3 = _border_colour(pixels_FHW3)
    colour_3 = _shape_colour(pixels_FHW3, background_3)
    background = _nearest(background_3)
    if colour_3 is None:
        return Seen(None, None, None, background)
    covers_FHW = _covers(pixels_FHW3, background_3, colour_3)
    areas_F = covers_FHW.sum(axis=(1, 2))
    share_F = areas_F / covers_FHW[0].size
    colour = _nearest(colour_3)
    if not LEAST_AREA < np.median(share_F) < MOST_AREA or share_F.min() < LEAST_AREA / 4:
        return Seen(None, colour, None, background)
    centres_F2 = np.array([_centre(cover_HW) for cover_HW in covers_FHW])
    waves_FK = np.array([_waves(*pair) for pair in zip(covers_FHW, centres_F2, strict=True)])
    shape = _shape(waves_FK, math.sqrt(float(np.median(areas_F)) / math.pi))
    side = min(covers_FHW.shape[1:])
    motion = _path(centres_F2 / side) or _change(areas_F) or _turn(waves_FK, shape)
    return Seen(shape, colour, motion, background)


def first_frame(frames_FHW3: Frames) -> tuple[str | None, str | None]:
    """Shape and colour of the first frame alone."""
    still = np.repeat(frames_FHW3[:1], 3, axis=0)
    seen = look(still)
    return seen.shape, seen.colour


# --- colours ---------------------------------------------------------------------------------------------


def _border_colour(pixels_FHW3: Floats) -> Floats:
    """Median of the outermost pixels: a shape covers few of them."""
    sides = (pixels_FHW3[:, 0], pixels_FHW3[:, -1], pixels_FHW3[:, :, 0], pixels_FHW3[:, :, -1])
    return np.asarray(np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0))


def _shape_colour(pixels_FHW3: Floats, background_3: Floats) -> Floats | None:
    """Median of what stands out most; None if nothing does."""
    distance_FHW = np.linalg.norm(pixels_FHW3 - background_3, axis=-1)
    stands_out = distance_FHW > LEAST_CONTRAST
    if stands_out.mean() < LEAST_AREA / 2:
        return None
    inner = distance_FHW > 0.75 * np.quantile(distance_FHW[stands_out], 0.9)
    return np.asarray(np.median(pixels_FHW3[inner], axis=0))


def _nearest(colour_3: Floats) -> str | None:
    distances = {
        name: float(np.linalg.norm(colour_3 - np.array(one.rgb))) for name, one in ALL_COLOURS.items()
    }
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= FARTHEST_COLOUR else None


# --- places and outlines ---------------------------------------------------------------------------------


def _covers(pixels_FHW3: Floats, background_3: Floats, colour_3: Floats) -> Floats:
    """Share of the shape's colour in every pixel, with the faint rest cut away."""
    direction_3 = colour_3 - background_3
    cover_FHW = (pixels_FHW3 - background_3) @ direction_3 / (direction_3 @ direction_3)
    return np.where(cover_FHW < 0.25, 0.0, np.clip(cover_FHW, 0, 1))


def _centre(cover_HW: Floats) -> Floats:
    """Column and row of the centre of gravity."""
    rows, columns = np.indices(cover_HW.shape)
    total = max(cover_HW.sum(), 1e-9)
    return np.array([(columns * cover_HW).sum() / total, (rows * cover_HW).sum() / total])


def _waves(cover_HW: Floats, centre_2: Floats) -> NDArray[np.complex128]:
    """Fourier coefficients of the outline around the centre, as shares of its mean radius."""
    angle_D = np.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
    reach = max(cover_HW.shape)
    step_R = np.arange(0.25, reach, 0.5)
    columns = centre_2[0] + np.cos(angle_D)[:, None] * step_R
    rows = centre_2[1] + np.sin(angle_D)[:, None] * step_R
    inside_DR = _sample(cover_HW, rows, columns)
    # The radius whose sector holds as much as was met on the ray.
    radius_D = np.sqrt(2 * (inside_DR * step_R).sum(axis=1) * 0.5)
    coefficients = np.fft.rfft(radius_D) / DIRECTIONS
    return np.asarray(2 * coefficients[:9] / max(abs(coefficients[0]), 1e-9))


def _sample(cover_HW: Floats, rows: Floats, columns: Floats) -> Floats:
    """Bilinear values of a picture that is 0 outside."""
    padded = np.pad(cover_HW, 1)
    rows = np.clip(rows + 1, 0, padded.shape[0] - 1.001)
    columns = np.clip(columns + 1, 0, padded.shape[1] - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _shape(waves_FK: NDArray[np.complex128], radius: float) -> str:
    """The shape whose drawn outline leaves least of the one that is seen."""
    moment_F = np.linspace(0, 1, len(waves_FK))
    # Turned back in every frame, the waves of an outline add up; what differs from frame to frame does not.
    back_SFK = np.exp(-1j * TURNS_S[:, None, None] * moment_F[:, None] * WAVES_K)
    waves_SK = (waves_FK[:, WAVES_K] * back_SFK).mean(axis=1)
    left = {name: _left_over(waves_SK, _drawn(name, max(4, round(radius)))) for name in ALL_SHAPES}
    return min(left, key=left.__getitem__)


def _left_over(waves_SK: NDArray[np.complex128], drawn_DK: NDArray[np.complex128]) -> float:
    """What a drawn outline, turned and as deep as fits best, leaves beyond what a circle leaves."""
    alike = float(np.real((waves_SK * WAVES_K) @ drawn_DK.conj().T).max())
    power = float((np.abs(drawn_DK[0]) ** 2 * WAVES_K).sum())
    depth = min(max(alike / power, BLUNTED), SHARPENED)
    return power * depth**2 - 2 * alike * depth


@lru_cache
def _drawn(shape: str, radius: int) -> NDArray[np.complex128]:
    """Waves of a shape that is drawn with the area of a circle of this radius, at every turn."""
    side = 8 * radius
    scene = Scene(shape, "white", "still", "black", size=radius / side / math.sqrt(ALL_SHAPES[shape].area))
    low, high = (ALL_COLOURS[name].rgb[0] for name in ("black", "white"))
    cover_HW = (render(scene, side, side, 1)[0, ..., 0].astype(np.float64) - low) / (high - low)
    waves_K = _waves(cover_HW, _centre(cover_HW))
    angle_D = np.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
    return np.asarray(waves_K[WAVES_K] * np.exp(1j * np.outer(angle_D, WAVES_K)))


# --- motions ---------------------------------------------------------------------------------------------


def _path(places_F2: Floats) -> str | None:
    """What the centre does; None if it rests. Places are in units of the frame's shorter side."""
    turns, way_2 = _direction_turns(places_F2), places_F2[-1] - places_F2[0]
    away_F = np.linalg.norm(places_F2 - places_F2[0], axis=1)
    if abs(turns) > CURVE and away_F.max() > LEAST_WAY:
        return _curve(away_F, turns)
    longest = np.abs(way_2).max()
    if longest > LEAST_WAY:
        # Much less than the other way is a slant, not a diagonal; in a wide frame that begins early.
        x, y = (int(np.sign(one)) if abs(one) > max(LEAST_WAY / 2, longest / 5) else 0 for one in way_2)
        words = ({-1: "up", 1: "down"}.get(y), {-1: "left", 1: "right"}.get(x))
        return " and ".join(word for word in words if word)
    middle_2 = places_F2[len(places_F2) // 2] - (places_F2[0] + places_F2[-1]) / 2
    if middle_2[0] > max(LEAST_WAY, abs(middle_2[1])):
        return "bounce sideways"
    if middle_2[1] > max(LEAST_WAY, abs(middle_2[0])):
        return "bounce upright"
    return None


def _curve(away_F: Floats, turns: float) -> str:
    """A circle ends where it began, a spiral elsewhere."""
    if away_F[-1] > UNCLOSED * away_F.max():
        return "spiral"
    return "circle" if turns > 0 else "circle back"


def _direction_turns(places_F2: Floats) -> float:
    """By how many radians the direction of motion turns one way, all in all, clockwise."""
    steps = np.diff(places_F2, axis=0)
    # The direction of a tiny step is noise.
    steps = steps[np.hypot(*steps.T) > LEAST_WAY / 8]
    if len(steps) < 4:
        return 0.0
    angle = np.arctan2(steps[:, 1], steps[:, 0])
    turns = (np.diff(angle) + math.pi) % (2 * math.pi) - math.pi
    # A way straight back is a bounce, not a curve.
    turns = turns[np.abs(turns) < 0.8 * math.pi]
    return float(turns.sum())


def _change(areas_F: Floats) -> str | None:
    ends = max(1, len(areas_F) // 8)
    ratio = areas_F[-ends:].mean() / max(areas_F[:ends].mean(), 1e-9)
    if ratio > SIZE_CHANGE:
        return "grow"
    return "shrink" if ratio < 1 / SIZE_CHANGE else None


def _turn(waves_FK: NDArray[np.complex128], shape: str) -> str:
    points = ALL_SHAPES[shape].points
    if points == 0:
        return "still"
    phase_F = np.unwrap(np.angle(waves_FK[:, points]))
    return "turn" if abs(phase_F[-1] - phase_F[0]) / points > TURNED else "still"
