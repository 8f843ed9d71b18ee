"""A real run, killed while it saves, leaves a whole checkpoint and goes on as if nothing had been."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longcat_tune.checkpoint.lora_file import LORA_FILES, read_lora
from longcat_tune.checkpoint.run_state import latest_checkpoint
from longcat_tune.config.run import RunConfig
from longcat_tune.files import PART_SUFFIX
from longcat_tune.runs.callbacks import Callbacks
from longcat_tune.runs.train import train
from longcat_tune.training.interfaces import LoopState
from longcat_tune.training.metrics import EventLog
from tests.builders import make_clips, make_run, video_entry
from tests.checkpoint.kills import kill_at, moments

FORMATS = ["peft", "official", "comfyui"]


def run(folder: Path, clips: Path, **keys: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    config = make_run(
        folder,
        [video_entry(clips)],
        checkpoint_step_interval=1,
        checkpoints_total_limit=2,
        use_ema=True,
        lora_format=FORMATS,
        lora_dropout=0.2,
        **keys,
    )
    train(config, config_dir=folder)
    return config


@pytest.mark.slow
def test_a_kill_at_twenty_moments_of_saving_costs_no_more_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    whole = run(tmp_path / "whole", clips, max_train_steps=4)

    saves: list[tuple[Callbacks, LoopState]] = []
    save = Callbacks.save

    def remembered(callbacks: Callbacks, state: LoopState) -> None:
        saves.append((callbacks, state))
        save(callbacks, state)

    with monkeypatch.context() as patch:
        patch.setattr(Callbacks, "save", remembered)
        out = run(tmp_path / "killed", clips, max_train_steps=3).output.output_dir
    callbacks, state = saves[-1]
    # Again and again from where the run stood before: two checkpoints, the older of which is to be pruned.
    shutil.move(out / "checkpoint-000002", tmp_path / "before")

    def stand_before() -> None:
        shutil.rmtree(out / "checkpoint-000003", ignore_errors=True)
        for name in ("checkpoint-000001", "checkpoint-000002"):
            shutil.copytree(tmp_path / "before", out / name, dirs_exist_ok=True)

    stand_before()
    again = partial(save, replace(callbacks, events=EventLog(None)), state)
    steps = []
    for touch in moments(again):
        stand_before()
        kill_at(touch, again)
        newest = latest_checkpoint(out)
        assert newest is not None
        steps.append(newest.state.step)
        for form in FORMATS:
            read_lora(out / LORA_FILES[form])
    assert set(steps) == {2, 3}
    # As a kill within writing it leaves it.
    (out / f"{LORA_FILES['peft']}.a1b2{PART_SUFFIX}").write_bytes(b"half")
    run(tmp_path / "killed", clips, max_train_steps=4)
    assert not list(out.glob(f"*{PART_SUFFIX}"))
    for name in ("ema.safetensors", "optimizer.safetensors", *(LORA_FILES[form] for form in FORMATS)):
        one, other = (
            load_file(folder / "checkpoint-000004" / name) for folder in (whole.output.output_dir, out)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
