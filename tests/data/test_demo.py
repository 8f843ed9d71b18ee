"""The made-up clips: what the caption says is what the frames show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longcat_tune.data.demo import COLOURS, MOTIONS, SHAPE_SIDES, Scene, demo_scenes, random_scene, render

BLUE_ON_WHITE = Scene("circle", "blue", "right", "white")


def cover_of(frame_HW3: np.ndarray, scene: Scene) -> np.ndarray:
    """Share of the shape's colour in every pixel."""
    colour, background = (np.array(COLOURS[name], dtype=float) for name in (scene.colour, scene.background))
    direction = colour - background
    return (frame_HW3 - background) @ direction / (direction @ direction)


def centre_of(frame_HW3: np.ndarray, scene: Scene) -> tuple[float, float]:
    cover = cover_of(frame_HW3, scene)
    rows, columns = np.indices(cover.shape)
    return (columns * cover).sum() / cover.sum(), (rows * cover).sum() / cover.sum()


def test_caption_names_everything_that_moves():
    assert BLUE_ON_WHITE.caption == "a blue circle moves right on a white background"
    assert replace(BLUE_ON_WHITE, motion="still").caption == "a blue circle rests on a white background"


@pytest.mark.parametrize("motion", MOTIONS)
def test_shape_moves_as_captioned(motion):
    scene = replace(BLUE_ON_WHITE, motion=motion)
    frames = render(scene, 96, 64, 5)
    centres = np.array([centre_of(frame, scene) for frame in frames])
    steps = np.sign(np.round(np.diff(centres, axis=0), 1))
    said = [("right" in motion) - ("left" in motion), ("down" in motion) - ("up" in motion)]
    assert (steps == said).all()


@pytest.mark.parametrize("shape", SHAPE_SIDES)
def test_area_is_that_of_the_ideal_shape(shape):
    scene = replace(BLUE_ON_WHITE, shape=shape, angle=0.1)
    radius, sides = scene.size * 128, SHAPE_SIDES[shape]
    ideal = np.pi * radius**2 if sides == 0 else sides / 2 * radius**2 * np.sin(2 * np.pi / sides)
    drawn = cover_of(render(scene, 160, 128, 1)[0], scene).sum()
    assert drawn == pytest.approx(ideal, rel=0.01)


def test_triangle_stands_on_its_side():
    scene = replace(BLUE_ON_WHITE, shape="triangle")
    rows = cover_of(render(scene, 64, 64, 1)[0], scene).sum(axis=1)
    filled = rows[rows > 1]
    assert filled[-2] > 3 * filled[0]


def test_edges_are_antialiased():
    cover = cover_of(render(BLUE_ON_WHITE, 64, 64, 1)[0], BLUE_ON_WHITE)
    assert ((cover > 0.1) & (cover < 0.9)).sum() > 20


def test_same_scene_gives_same_frames():
    draws = [random_scene(np.random.default_rng(3)) for _ in range(2)]
    assert draws[0] == draws[1]
    np.testing.assert_array_equal(render(draws[0], 64, 48, 3), render(draws[1], 64, 48, 3))


def test_random_shapes_stay_inside_the_frame():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = random_scene(rng)
        assert scene.colour != scene.background
        background = COLOURS[scene.background]
        for frame in render(scene, 80, 64, 3):
            rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).astype(int)
            # A shape that touches the edge leaves half a pixel's share of itself there at most.
            assert abs(rim - background).max() <= 128


def test_eight_demo_scenes_show_every_shape_and_colour():
    scenes = demo_scenes()
    assert len(scenes) == len({scene.caption for scene in scenes}) == 8
    assert {scene.shape for scene in scenes} == set(SHAPE_SIDES)
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert demo_scenes(3) == scenes[:3]
