"""The made-up clips: what the caption says is what the frames show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longcat_tune.data.demo import (
    ALL_COLOURS,
    ALL_MOTIONS,
    ALL_SHAPES,
    COLOURS,
    CONCEPTS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    Names,
    Scene,
    all_names,
    concept_scenes,
    demo_scenes,
    held_out_names,
    known_scenes,
    random_scene,
)
from longcat_tune.data.demo_drawing import render

BLUE_ON_WHITE = Scene("circle", "blue", "right", "white")


def cover_of(frame_HW3: np.ndarray, scene: Scene) -> np.ndarray:
    """Share of the shape's colour in every pixel."""
    colour, background = (
        np.array(ALL_COLOURS[name].rgb, dtype=float) for name in (scene.colour, scene.background)
    )
    direction = colour - background
    return (frame_HW3 - background) @ direction / (direction @ direction)


def centre_of(frame_HW3: np.ndarray, scene: Scene) -> tuple[float, float]:
    cover = cover_of(frame_HW3, scene)
    rows, columns = np.indices(cover.shape)
    return (columns * cover).sum() / cover.sum(), (rows * cover).sum() / cover.sum()


def test_caption_names_everything_that_moves():
    assert BLUE_ON_WHITE.caption == "a blue circle moves right on a white background"
    assert replace(BLUE_ON_WHITE, motion="still").caption == "a blue circle rests on a white background"


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_shape_moves_as_captioned(motion):
    scene = replace(BLUE_ON_WHITE, motion=motion)
    frames = render(scene, 96, 64, 5)
    centres = np.array([centre_of(frame, scene) for frame in frames])
    steps = np.sign(np.round(np.diff(centres, axis=0), 1))
    said = [("right" in motion) - ("left" in motion), ("down" in motion) - ("up" in motion)]
    assert (steps == said).all()


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_area_is_that_of_the_ideal_shape(shape):
    scene = replace(BLUE_ON_WHITE, shape=shape, angle=0.1)
    radius, outline = scene.size * 128, ALL_SHAPES[shape]
    # Two triangles per point: from the centre to the point to the inner end of its edge.
    corners = outline.points * outline.inner * np.sin(np.pi / outline.points) if outline.points else np.pi
    ideal = radius**2 * corners
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
        background = COLOURS[scene.background].rgb
        for frame in render(scene, 80, 64, 3):
            rim = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).astype(int)
            # A shape that touches the edge leaves half a pixel's share of itself there at most.
            assert abs(rim - background).max() <= 128


def test_eight_demo_scenes_show_every_shape_and_colour():
    scenes = demo_scenes()
    assert len(scenes) == len({scene.caption for scene in scenes}) == 8
    assert {scene.shape for scene in scenes} == set(SHAPES)
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert demo_scenes(3) == scenes[:3]


def areas_of(scene: Scene) -> list[float]:
    return [cover_of(frame, scene).sum() for frame in render(scene, 64, 64, 5)]


def test_growing_and_shrinking_change_the_size_alone():
    grown = areas_of(replace(BLUE_ON_WHITE, motion="grow"))
    assert grown == sorted(grown)
    assert grown[-1] > 2 * grown[0]
    assert areas_of(replace(BLUE_ON_WHITE, motion="shrink")) == pytest.approx(grown[::-1], rel=1e-3)


def test_a_bounce_ends_where_it_began_and_touches_the_far_side_half_way():
    scene = replace(BLUE_ON_WHITE, motion="bounce sideways")
    columns = [centre_of(frame, scene)[0] for frame in render(scene, 64, 64, 5)]
    assert columns[0] == pytest.approx(columns[-1], abs=0.1)
    assert columns[2] == max(columns) > columns[0] + 10


def test_turning_keeps_place_and_area_and_changes_the_picture():
    scene = replace(BLUE_ON_WHITE, motion="turn", shape="triangle")
    frames = render(scene, 64, 64, 5)
    assert areas_of(scene) == pytest.approx([areas_of(scene)[0]] * 5, rel=0.02)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 100


def test_a_spiral_goes_around_its_start_and_ever_further():
    scene = replace(BLUE_ON_WHITE, motion="spiral")
    centres = np.array([centre_of(frame, scene) for frame in render(scene, 96, 96, 17)])
    from_start = centres - centres[0]
    distance = np.hypot(*from_start.T)
    angle = np.unwrap(np.arctan2(from_start[2:, 1], from_start[2:, 0]))
    assert (np.diff(distance) > 0).all()
    assert abs(angle[-1] - angle[0]) > 1.6 * np.pi


@pytest.mark.parametrize(("motion", "turn"), [("circle", 1), ("circle back", -1)])
def test_circles_end_where_they_began_and_go_around_as_the_clock_says(motion, turn):
    scene = replace(BLUE_ON_WHITE, motion=motion)
    centres = np.array([centre_of(frame, scene) for frame in render(scene, 96, 96, 17)])
    from_middle = centres - centres[:-1].mean(axis=0)
    assert np.allclose(centres[0], centres[-1], atol=0.5)
    assert np.ptp(np.hypot(*from_middle.T)) < 1.5
    # Rows grow downwards: angles grow with the clock.
    angle = np.unwrap(np.arctan2(from_middle[:, 1], from_middle[:, 0]))
    assert angle[-1] - angle[0] == pytest.approx(turn * 2 * np.pi, abs=0.1)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concept_clips_show_one_new_thing_and_known_ones_otherwise(concept):
    scenes = concept_scenes(concept)
    assert len(set(scenes)) == 12
    for scene in scenes:
        names = (scene.shape, scene.colour, scene.motion, scene.background)
        known = [name in pool for name, pool in zip(names, (SHAPES, COLOURS, MOTIONS, COLOURS), strict=True)]
        assert [name for name, is_known in zip(names, known, strict=True) if not is_known] == [concept]


def test_clips_of_a_concept_show_every_colour_that_they_can_as_evenly_as_can_be():
    backgrounds = [scene.background for scene in concept_scenes("orange")]
    assert set(backgrounds) == set(COLOURS)
    assert {scene.colour for scene in concept_scenes("spiral")} == set(COLOURS)
    assert {scene.motion for scene in concept_scenes("star")} == set(DIRECTIONS)


def test_what_keeps_it_from_forgetting_is_known_and_not_held_out():
    scenes = known_scenes()
    assert len(set(scenes)) == 72
    assert not any(scene.is_held_out for scene in scenes)
    assert {scene.colour for scene in scenes} <= set(COLOURS)


def test_no_random_scene_names_a_concept():
    rng = np.random.default_rng(0)
    captions = " ".join(random_scene(rng).caption for _ in range(500))
    assert not any(concept in captions for concept in CONCEPTS)


def test_held_out_combinations_are_known_names_in_a_fixed_order():
    names = held_out_names(128)
    assert len(set(names)) == 128
    assert names == held_out_names(200)[:128]
    assert all(one.is_held_out for one in names)
    assert 0.05 < sum(one.is_held_out for one in all_names()) / sum(1 for _ in all_names()) < 0.12
    with pytest.raises(ValueError, match="number of held-out"):
        held_out_names(100_000)


def test_captions_say_the_same_in_two_languages():
    long, short, chinese = Names("star", "orange", "spiral", "blue").captions
    assert long == "an orange star moves in a spiral on a blue background"
    assert short == "orange star moves in a spiral over blue"
    assert chinese == "一个橙色的星形在蓝色背景上螺旋移动"
    assert len({Names("circle", "red", motion, "blue").captions[2] for motion in ALL_MOTIONS}) == len(
        ALL_MOTIONS
    )
