"""The refinement pass by the command: larger, twice the frames, the start image still first; or left out."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch

from longcat_tune.data.video import probe
from longcat_tune.runs.refinement import Refiner
from longcat_tune.runs.render_record import ShownVideo, read_record
from longcat_tune.runs.validate import validate
from tests.builders import make_run
from tests.integration.test_fast_renders import write_distilled
from tests.media_builders import write_image


def render(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ShownVideo, Path]:
    monkeypatch.setattr("longcat_tune.runs.refinement.refined_size", lambda *_: (128, 64))
    lora = write_distilled(folder / "refinement_lora.safetensors")
    config = make_run(
        folder,
        [],
        data_backend_config=None,
        validation_refinement_lora=str(lora),
        validation_guidance=1.0,
        validation_num_inference_steps=1,
    )
    image = write_image(folder / "start.png", size=(96, 64))
    validate(config, config_dir=folder, loras=[], prompts=["a"], image=image)
    base = config.output.output_dir / "validation" / "base"
    [video] = read_record(base).videos
    return video, base / video.file


def test_a_render_is_refined_around_its_start_image(tmp_path: Path, monkeypatch) -> None:
    video, path = render(tmp_path, monkeypatch)
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (128, 64, 18)
    assert info.fps == pytest.approx(30)
    assert video.numbers["first_frame_psnr"] > 12


def test_a_refinement_that_does_not_fit_leaves_the_render_as_it_was(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Refiner, "refine", fail)
    _, path = render(tmp_path, monkeypatch)
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (64, 64, 9)
    assert info.fps == pytest.approx(15)
