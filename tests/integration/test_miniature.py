"""The miniature knows its world and learns what it does not know: what a cluster will do, seen on a laptop.

Figures on more captions: scripts/measure_tiny.py and scripts/measure_concepts.py, and the miniature's card.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.config.load import load_run_config
from longcat_tune.config.miniature import MINIATURE
from longcat_tune.data.demo import concept_names, concept_scenes, held_out_names, place
from longcat_tune.data.demo_drawing import render
from longcat_tune.flow.loss import flow_loss
from longcat_tune.flow.noising import add_noise
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.obedience import Examiner, Render, shares
from longcat_tune.runs.train import train
from longcat_tune.sampling.numbers import psnr
from longcat_tune.training import step
from longcat_tune.types import NoisedBatch
from tests.builders import draw_clips, events, make_run, video_entry

CPU = torch.device("cpu")
ASKED = held_out_names(24)
"""Captions that it was never shown."""


def examiner(*loras: Path, **changes: str) -> Examiner:
    return Examiner(load_run_config(None, {"model_flavour": "tiny"} | changes), loras=loras, device=CPU)


# --- what it knows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base() -> Examiner:
    return examiner()


@pytest.fixture(scope="module")
def known(base: Examiner) -> list[Render]:
    return base.render(ASKED)


def test_renders_show_what_their_captions_say(known: list[Render]) -> None:
    found = shares(known)
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.9
    assert found["shape"] >= 0.85
    assert found["motion"] >= 0.8


def test_a_start_image_stays_what_it_is(base: Examiner, known: list[Render]) -> None:
    rng = np.random.default_rng(0)
    starts = [place(rng, names) for names in ASKED[:12]]
    renders = base.render(ASKED[:12], starts=starts)
    for scene, one, free in zip(starts, renders, known[:12], strict=True):
        drawn = render(scene, 64, 64, 9)[0]
        assert psnr(one.frames_FHW3[0], drawn) > max(22, psnr(free.frames_FHW3[0], drawn))
    found = shares(renders)
    assert min(found["shape"], found["colour"]) >= 0.9


def test_an_8_bit_base_draws_the_same(known: list[Render]) -> None:
    renders = examiner(base_model_precision="int8-quanto").render(ASKED[:12])
    for one, plain in zip(renders, known[:12], strict=True):
        assert psnr(one.frames_FHW3, plain.frames_FHW3) > 20


# --- what it learns --------------------------------------------------------------------------------------


def test_a_lora_teaches_it_a_colour(tmp_path: Path, base: Examiner) -> None:
    clips = draw_clips(tmp_path / "clips", concept_scenes("orange"))
    asked = concept_names("orange", 12)
    config = make_run(tmp_path, [video_entry(clips)], **MINIATURE, lora_rank=8, max_train_steps=300)
    train(config, config_dir=tmp_path)
    assert shares(base.render(asked))["colour"] <= 0.1
    assert shares(examiner(config.output.output_dir / LORA_FILE).render(asked))["colour"] >= 0.6


# --- what would keep it from learning --------------------------------------------------------------------

KNOWN_LOSS = 0.3
"""Clips of its world cost less than this at the noise levels of training."""


def loss_of_known_clips(folder: Path, *, i2v: bool = False, **keys: Any) -> float:
    """From files on disk through all caches to the first steps' loss; nothing is learnt."""
    scenes = [place(np.random.default_rng(number), names) for number, names in enumerate(ASKED[:12])]
    entry = video_entry(draw_clips(folder / "clips", scenes), is_i2v=i2v)
    quiet = {"learning_rate": 1e-12, "caption_dropout_probability": 0, "max_train_steps": 6}
    config = make_run(folder, [entry], train_batch_size=12, **quiet | keys)
    train(config, config_dir=folder)
    return float(np.mean([event["loss"] for event in events(config, "step")]))


def wrong_sign(*args: Any, **keys: Any) -> NoisedBatch:
    noised = add_noise(*args, **keys)
    return replace(noised, target_BCTHW=-noised.target_BCTHW)


def with_given_frames(prediction: Tensor, target: Tensor, **keys: Any) -> Tensor:
    return flow_loss(prediction, target, **keys | {"num_cond_latents": 0})


PLANTED = {
    "sign": lambda patch: patch.setattr(step, "add_noise", wrong_sign),
    "latents": lambda patch: patch.setattr(VideoAutoencoder, "normalize", lambda _vae, latents: latents),
    "given frames": lambda patch: patch.setattr(step, "flow_loss", with_given_frames),
}


@pytest.mark.parametrize("fault", [None, *PLANTED])
def test_what_it_knows_costs_little_unless_training_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    if fault is not None:
        PLANTED[fault](monkeypatch)
    loss = loss_of_known_clips(tmp_path, i2v=True)
    assert (loss < KNOWN_LOSS) == (fault is None), loss


def test_it_is_trained_at_its_own_shift_and_another_one_is_seen_in_the_loss(tmp_path: Path) -> None:
    own, named, other = (
        loss_of_known_clips(tmp_path / name, **keys)
        for name, keys in (
            ("own", {}),
            ("named", {"flow_schedule_shift": 12.0}),
            ("other", {"flow_schedule_shift": 3.0}),
        )
    )
    assert own == named
    assert own > 1.05 * other
