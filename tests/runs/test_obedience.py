"""The miniature's examination: the same noise for the same place, start images given, LoRAs applied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longcat_tune.config.load import load_run_config
from longcat_tune.data.demo import held_out_names, place
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.demo_probe import FIELDS, Seen
from longcat_tune.runs import obedience
from longcat_tune.runs.obedience import Examiner, Render, shares
from longcat_tune.sampling.numbers import psnr

ASKED = held_out_names(3)
TINY = {"model_flavour": "tiny"}


@pytest.fixture(scope="module")
def examiner():
    return Examiner(load_run_config(None, TINY), device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _two_steps(monkeypatch):
    monkeypatch.setattr(obedience, "NUM_STEPS", 2)


def frames_of(renders: list[Render]) -> list[np.ndarray]:
    return [one.frames_FHW3 for one in renders]


def test_a_render_does_not_depend_on_its_neighbours(examiner, monkeypatch):
    together = frames_of(examiner.render(ASKED))
    monkeypatch.setattr(obedience, "AT_ONCE", 2)
    apart = frames_of(examiner.render(ASKED))
    for one, other in zip(together, apart, strict=True):
        assert psnr(one, other) > 45
    assert psnr(together[0], together[1]) < 40


def test_another_seed_or_language_gives_another_render(examiner):
    [first] = frames_of(examiner.render(ASKED[:1]))
    assert not np.array_equal(first, examiner.render(ASKED[:1], seed=1)[0].frames_FHW3)
    assert not np.array_equal(first, examiner.render(ASKED[:1], language=2)[0].frames_FHW3)


def test_a_given_first_frame_is_shown_as_the_vae_shows_it(examiner):
    scene = place(np.random.default_rng(0), ASKED[0])
    [given] = frames_of(examiner.render(ASKED[:1], starts=[scene]))
    drawn = render(scene, 64, 64, 9)[0]
    assert given.shape == (9, 64, 64, 3)
    assert psnr(given[0], drawn) > 20
    assert psnr(given[0], drawn) > psnr(examiner.render(ASKED[:1])[0].frames_FHW3[0], drawn) + 5


def test_shares_count_each_name_and_all_at_once():
    names = ASKED[0]
    right = Seen(*(getattr(names, field) for field in FIELDS))
    wrong = Seen(None, right.colour, right.motion, right.background)
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    found = shares([Render(names, frames, right), Render(names, frames, wrong)])
    assert found == {"shape": 0.5, "colour": 1, "motion": 1, "background": 1, "all": 0.5}
