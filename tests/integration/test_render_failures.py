"""Whatever a render meets, the training ends as it would have without it, and events.jsonl tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.config.run import RunConfig
from longcat_tune.data.video import probe
from longcat_tune.errors import DeviceError
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.render_record import read_record
from longcat_tune.runs.train import train
from longcat_tune.runs.validate import validate
from tests.builders import events, make_clips, make_run, video_entry

RENDERS = {"validation_prompt": "a", "validation_step_interval": 2, "validation_on_startup": True}
DECODE = VideoAutoencoder.decode


def run(folder: Path, **keys: Any) -> RunConfig:
    folder.mkdir()
    clips = make_clips(folder / "clips", 2)
    config = make_run(folder, [video_entry(clips)], max_train_steps=3, lora_dropout=0.3, **keys)
    train(config, config_dir=folder)
    return config


def weights(config: RunConfig) -> dict[str, Tensor]:
    return load_file(config.output.output_dir / LORA_FILE)


def require_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_decoder_that_fails_costs_the_training_nothing(tmp_path: Path, monkeypatch) -> None:
    undisturbed = run(tmp_path / "without")

    def fail(*_: object) -> Tensor:
        torch.rand(3)
        raise ValueError("the decoder broke")

    monkeypatch.setattr(VideoAutoencoder, "decode", fail)
    config = run(tmp_path / "with", **RENDERS)
    require_equal(weights(config), weights(undisturbed))
    failures = events(config, "render_failed")
    assert [failure["step"] for failure in failures] == [0, 2, 3]
    assert failures[0]["render"] == "prompt_64x64_42"
    assert (failures[0]["kind"], failures[0]["message"]) == ("ValueError", "the decoder broke")
    assert 'raise ValueError("the decoder broke")' in failures[0]["traceback"]
    assert events(config, "run_end")[-1]["how"] == "finished"
    page = (config.output.output_dir / "validation" / "index.html").read_text()
    assert "the decoder broke" in page


def test_a_decoder_without_memory_costs_the_training_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(VideoAutoencoder, "decode", fail)
    config = run(tmp_path / "with", **RENDERS)
    assert events(config, "run_end")[-1]["how"] == "finished"
    assert {event["change"] for event in events(config, "render_smaller")} == {"frames are decoded in tiles"}
    assert "lower validation_resolution" in events(config, "render_failed")[0]["message"]


def test_a_render_that_does_not_fit_is_made_shorter_from_the_start_of_the_run(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("longcat_tune.runs.render_request.render_latents", _only_short)
    keys = {"validation_num_video_frames": 21, "validation_on_startup": False}
    config = run(tmp_path / "run", **RENDERS | keys)
    # The probe found out, before the first step; the renders at steps 2 and 3 did not try again.
    assert [(one["step"], one["change"]) for one in events(config, "render_smaller")] == [
        (0, "9 frames in place of 21"),
        (0, "5 frames in place of 9"),
    ]
    folder = config.output.output_dir / "validation" / "step_000002"
    assert probe(folder / "prompt_64x64_42.mp4").num_frames == 5
    assert read_record(folder).videos[0].num_frames == 5
    assert not (folder.parent / "step_000000").exists()


def test_the_probe_leaves_the_weights_alone(tmp_path: Path) -> None:
    probed = run(tmp_path / "probed", **RENDERS | {"validation_on_startup": False})
    require_equal(weights(probed), weights(run(tmp_path / "without")))


def test_one_failing_request_leaves_the_others(tmp_path: Path, monkeypatch) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    monkeypatch.setattr(VideoAutoencoder, "decode", _every_second())
    with pytest.raises(DeviceError, match="1 of 2 renders failed: b_64x64_42: no luck"):
        validate(config, config_dir=tmp_path, loras=[], prompts=["a", "b"], image=None)
    record = read_record(config.output.output_dir / "validation" / "base")
    assert [video.name for video in record.videos] == ["a"]
    monkeypatch.undo()
    validate(config, config_dir=tmp_path, loras=[], prompts=["a", "b"], image=None)
    record = read_record(config.output.output_dir / "validation" / "base")
    assert [video.name for video in record.videos] == ["a", "b"]


def _only_short(_model: object, encoded: Any, **_: object) -> Tensor:
    frames, height, width = encoded.request.size.latent_shape
    if frames > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return torch.zeros(16, frames, height, width)


def _every_second() -> Any:
    calls: list[int] = []

    def decode(vae: VideoAutoencoder, latents: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise DeviceError("no luck")
        return DECODE(vae, latents)

    return decode
