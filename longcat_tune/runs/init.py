"""The command `init`: look at a folder of clips, write the two config files that fit it and this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.demo import demo_scenes, render
from longcat_tune.data.manifest import scan
from longcat_tune.data.video import write_mp4
from longcat_tune.data.windows import resampled_frames
from longcat_tune.errors import ConfigError, DataError
from longcat_tune.files import write_atomically
from longcat_tune.runs.build import pick_device
from longcat_tune.types import ClipRecord

logger = logging.getLogger(__name__)

CONFIG_FOLDER = Path("config")
DEMO_SIZE = (192, 128)
DEMO_FRAMES = 25
DEMO_FPS = 15.0
SLOW_FPS = 20.0
"""Below this the clips are taken at 15 frames a second, the rate of the authors' 480p stage, else at 30."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The values that a flavour's files are filled with.

    Attributes:
        resolution: shorter edge in pixels.
        num_frames: longest clip.
        learning_rate: that learns within max_train_steps.
        max_train_steps: length of a first run.
        every: steps between renders and between checkpoints.
        render_frames: frames of a render.
        render_steps: denoising steps of a render.
        why: the first comment of the file.
    """

    resolution: int
    num_frames: int
    learning_rate: str
    max_train_steps: int
    every: int
    render_frames: int
    render_steps: int
    why: str


RECIPES = {
    "final": Recipe(480, 93, "1e-4", 1000, 250, 93, 40, "LongCat-Video 13.6B"),
    "tiny": Recipe(
        128, 17, "1e-3", 120, 60, 17, 12, "the embedded miniature: same code, small enough for any machine"
    ),
}


def init(clips_dir: Path, *, i2v: bool, demo: bool, flavour: Literal["final", "tiny"] | None = None) -> None:
    """Write config/config.json and config/multidatabackend.json.

    Args:
        clips_dir: the clips; with demo it is made and filled.
        i2v: train image-to-video from each clip's own first frame.
        demo: draw eight captioned clips first.
        flavour: the model; None takes the miniature where there is no GPU.

    Raises:
        ConfigError: one of the files exists.
        DataError: there are no usable clips.
    """
    config_path, data_path = CONFIG_FOLDER / "config.json", CONFIG_FOLDER / "multidatabackend.json"
    for path in (config_path, data_path):
        if path.exists():
            msg = f"{path} exists and is never overwritten; edit it, or move it away and run init again"
            raise ConfigError(msg)
    if demo:
        _draw_demo(clips_dir)
    records = _usable_clips(clips_dir)
    chosen = flavour or ("tiny" if pick_device().type == "cpu" else "final")
    _write(data_path, _data_text(clips_dir, records, RECIPES[chosen], i2v=i2v))
    _write(config_path, _config_text(records, chosen))
    logger.info("Wrote %s and %s for %d clips", config_path, data_path, len(records))
    logger.info("Next: longcat-tune check --config %s", config_path)


def _draw_demo(folder: Path) -> None:
    width, height = DEMO_SIZE
    for number, scene in enumerate(demo_scenes(), start=1):
        path = folder / f"clip-{number}.mp4"
        write_mp4(path, render(scene, width, height, DEMO_FRAMES), DEMO_FPS)
        _write(path.with_suffix(".txt"), scene.caption + "\n")
    logger.info("Drew captioned clips in %s", folder)


def _usable_clips(folder: Path) -> Sequence[ClipRecord]:
    entry = DatasetEntry(id="clips", instance_data_dir=folder)
    manifest = scan(entry)
    for refusal in manifest.refusals:
        logger.warning("%s %s; %s", refusal.path, refusal.reason, refusal.remedy)
    videos = [record for record in manifest.records if record.kind == "video"]
    if not videos:
        msg = f"{folder}: no usable video; put clips there, each with a caption in a .txt of the same name"
        raise DataError(msg)
    return videos


def _framerate(records: Sequence[ClipRecord]) -> int:
    rates = [record.source_frames / record.seconds for record in records if record.seconds]
    return 15 if rates and median(rates) < SLOW_FPS else 30


def _data_text(folder: Path, records: Sequence[ClipRecord], recipe: Recipe, *, i2v: bool) -> str:
    framerate = _framerate(records)
    shortest = min(resampled_frames(record.seconds, framerate) for record in records)
    if shortest >= recipe.num_frames:
        why = f"every clip has at least {recipe.num_frames} frames"
        strategy = "aspect_ratio"
    else:
        why = f"the shortest clip has {shortest} frames, so each keeps its own length"
        strategy = "resolution_frames"
    task = '\n    "is_i2v": true,                      // the clip\'s own first frame is given' if i2v else ""
    return f"""[
  {{
    "id": "clips",
    "type": "local",
    "dataset_type": "video",{task}
    "instance_data_dir": {json.dumps(str(folder.resolve()))},
    "caption_strategy": "textfile",      // a .txt of the same name beside each clip
    "video": {{
      "num_frames": {recipe.num_frames},
      "bucket_strategy": "{strategy}"    // {why}
    }}
  }}
]
"""


def _config_text(records: Sequence[ClipRecord], flavour: str) -> str:
    recipe = RECIPES[flavour]
    first = records[0]
    portrait = first.height > first.width
    long_edge = 832 if flavour == "final" else 192
    width, height = (recipe.resolution, long_edge) if portrait else (long_edge, recipe.resolution)
    return f"""{{
  // {recipe.why}
  "model_type": "lora",
  "model_family": "longcat_video",
  "model_flavour": "{flavour}",
  "output_dir": "longcat-tune-results",
  "data_backend_config": "multidatabackend.json",
  "resolution": {recipe.resolution},
  "framerate": {_framerate(records)},

  "train_batch_size": 1,
  "gradient_checkpointing": true,
  "lora_rank": 8,
  "learning_rate": {recipe.learning_rate},
  "max_train_steps": {recipe.max_train_steps},
  "checkpoint_step_interval": {recipe.every},

  // the first clip's caption: watch it change from the base model's answer to yours
  "validation_prompt": {json.dumps(first.captions[0], ensure_ascii=False)},
  "validation_resolution": "{width}x{height}",
  "validation_num_video_frames": {recipe.render_frames},
  "validation_num_inference_steps": {recipe.render_steps},
  "validation_guidance": 4.0,
  "validation_step_interval": {recipe.every}
}}
"""


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
