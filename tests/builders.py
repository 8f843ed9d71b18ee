"""Small inputs for the tests: clips on disk and configs of runs on the miniature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import RunConfig
from longcat_tune.data.demo import Scene, demo_scenes
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.video import write_mp4
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.runs.build import find_checkpoint
from longcat_tune.runs.transformer import build_base


def make_clips(folder: Path, count: int = 2, *, size: tuple[int, int] = (64, 64), frames: int = 9) -> Path:
    """Captioned clips of moving shapes at 15 frames a second."""
    return draw_clips(folder, demo_scenes(count), size=size, frames=frames)


def draw_clips(
    folder: Path, scenes: Sequence[Scene], *, size: tuple[int, int] = (64, 64), frames: int = 9
) -> Path:
    """The same of given scenes."""
    for number, scene in enumerate(scenes):
        path = folder / f"clip-{number}.mp4"
        write_mp4(path, render(scene, *size, frames), 15.0)
        path.with_suffix(".txt").write_text(scene.caption)
    return folder


def make_run(folder: Path, datasets: list[dict[str, Any]], **overrides: Any) -> RunConfig:
    """A run on the miniature that trains fast; datasets are entries of the data file."""
    (folder / "data.json").write_text(json.dumps(datasets))
    values = {
        "model_flavour": "tiny",
        "data_backend_config": str(folder / "data.json"),
        "output_dir": str(folder / "out"),
        "resolution": 64,
        "framerate": 15,
        "max_train_steps": 2,
        "learning_rate": 1e-3,
        "validation_step_interval": 0,
        "validation_on_startup": False,
        "validation_resolution": "64x64",
        "validation_num_video_frames": 9,
        "validation_num_inference_steps": 2,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(values | overrides))
    return load_run_config(path, {})


def events(config: RunConfig, name: str) -> list[dict[str, Any]]:
    """What a run has told under one name, in order."""
    lines = (config.output.output_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def video_entry(clips: Path, **changes: Any) -> dict[str, Any]:
    """One dataset entry of 9-frame clips."""
    return {
        "id": "clips",
        "dataset_type": "video",
        "instance_data_dir": str(clips),
        "video": {"num_frames": 9},
    } | changes


def stills_entry(stills: Path, **changes: Any) -> dict[str, Any]:
    """One entry of start images."""
    return {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": str(stills)} | changes


def transformer(config: RunConfig) -> LongCatVideoTransformer:
    """The base that a run trains on, on the CPU, without an adapter."""
    folder = find_checkpoint(config.model).transformer
    return build_base(config, folder, device=torch.device("cpu"), trains=True).model
