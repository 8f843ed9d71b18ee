"""The probe reads drawn clips without a mistake, and does not see what is not there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from longcat_tune.data.demo import ALL_MOTIONS, CONCEPTS, Outline, Scene, concept_scenes, random_scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.demo_probe import Seen, first_frame, look

RED_SQUARE = Scene("square", "red", "right", "blue")


@pytest.mark.parametrize(("width", "height", "frames"), [(64, 64, 9), (64, 64, 17), (128, 64, 9)])
def test_random_scenes_are_read_as_captioned(width, height, frames):
    rng = np.random.default_rng(11)
    for scene in [random_scene(rng) for _ in range(40)]:
        assert all(look(render(scene, width, height, frames)).matches(scene).values()), scene


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concepts_are_read_as_captioned(concept):
    for scene in concept_scenes(concept):
        assert all(look(render(scene, 64, 64, 9)).matches(scene).values()), scene


@pytest.mark.parametrize("motion", ALL_MOTIONS)
def test_a_clip_played_backwards_is_read_as_the_opposite(motion):
    opposite = {
        "left": "right",
        "right": "left",
        "up": "down",
        "down": "up",
        "grow": "shrink",
        "shrink": "grow",
        "circle": "circle back",
        "circle back": "circle",
    }
    scene = replace(RED_SQUARE, motion=motion)
    seen = look(render(scene, 64, 64, 9)[::-1])
    if motion in opposite or " and " in motion:
        assert seen.motion == " and ".join(opposite[word] for word in motion.split(" and "))
    else:
        assert seen.motion in {motion, "spiral"}


def test_noise_and_blur_do_not_change_what_is_read():
    rng = np.random.default_rng(3)
    for scene in [random_scene(rng) for _ in range(12)]:
        noisy = render(scene, 64, 64, 9) + rng.normal(0, 6, (9, 64, 64, 3))
        assert all(look(noisy.clip(0, 255).astype(np.uint8)).matches(scene).values()), scene


@pytest.mark.parametrize(
    ("points", "inner", "nearest"),
    [
        (3, 0.35, "triangle"),
        (4, 0.5, "cross"),
        (5, 0.5, "star"),
        (5, math.cos(math.pi / 5), "circle"),
        (6, math.cos(math.pi / 6), "circle"),
    ],
)
def test_an_outline_that_has_no_name_is_the_nearest_that_has_one(points, inner, nearest):
    frames = render(replace(RED_SQUARE, size=0.35), 64, 64, 9, outline=Outline(points, inner, ""))
    assert look(frames) == Seen(nearest, "red", "right", "blue")


def test_an_empty_clip_shows_a_background_and_nothing_else():
    frames = np.full((9, 64, 64, 3), (38, 84, 214), np.uint8)
    assert look(frames) == Seen(None, None, None, "blue")


def test_a_colour_without_a_name_is_none():
    drawn = render(replace(RED_SQUARE, colour="white", background="black"), 64, 64, 9)[..., :1]
    cover = (drawn - 18.0) / (242 - 18)
    blue = np.array([38, 84, 214])
    frames = (blue + cover * (np.array([120, 120, 120]) - blue)).astype(np.uint8)
    assert look(frames) == Seen("square", None, "right", "blue")


def test_a_shape_that_vanishes_has_no_motion():
    frames = render(RED_SQUARE, 64, 64, 9)
    frames[5:] = frames[0, 0, 0]
    assert look(frames).motion is None


def test_the_first_frame_is_read_alone():
    frames = render(replace(RED_SQUARE, shape="star", colour="orange"), 64, 64, 9)
    frames[1:] = 0
    assert first_frame(frames) == ("star", "orange")
