"""The miniature knows its world and learns what it does not know: what a cluster will do, seen on a laptop.

Figures on more captions: scripts/measure_tiny.py and scripts/measure_concepts.py, and the miniature's card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.config.load import load_run_config
from longcat_tune.data.demo import Concept, Names, concept_names, concept_scenes, held_out_names, place
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.video import write_mp4
from longcat_tune.flow import density, noising
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs import obedience
from longcat_tune.runs.obedience import Examiner, Render, shares
from longcat_tune.runs.train import train
from longcat_tune.sampling.numbers import psnr
from longcat_tune.training import step as training_step_module
from tests.builders import make_run, video_entry

CPU = torch.device("cpu")
TINY = {"model_flavour": "tiny"}
"""What makes a run on the miniature."""


def examine(asked: Sequence[Names], *, loras: Sequence[Path] = (), **changes: object) -> list[Render]:
    torch.manual_seed(0)
    return Examiner(load_run_config(None, TINY | changes), loras=loras, device=CPU).render(asked)


def draw(folder: Path, scenes: Sequence[object]) -> Path:
    """Clips with captions, as `init --demo` draws them."""
    for number, scene in enumerate(scenes):
        path = folder / f"clip-{number:02d}.mp4"
        write_mp4(path, render(scene, 64, 64, 9), 15.0)
        path.with_suffix(".txt").write_text(scene.caption)
    return folder


# --- what it knows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> list[Render]:
    """Renders of captions that it was never shown."""
    return examine(held_out_names(24))


def test_renders_show_what_their_captions_say(known: list[Render]) -> None:
    found = shares(known)
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.9
    assert found["shape"] >= 0.8
    assert found["motion"] >= 0.8
