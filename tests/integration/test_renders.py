"""Renders inside a run and by `validate`: the same pictures of prompts, held-out clips and start images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, write_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.data.video import probe
from longcat_tune.errors import ConfigError
from longcat_tune.runs.render_record import read_record
from longcat_tune.runs.train import train
from longcat_tune.runs.validate import validate
from tests.builders import make_clips, make_run, video_entry
from tests.media_builders import read_frames


def frames(path: Path) -> np.ndarray:
    return read_frames(path, probe(path).times)


def renders(config: RunConfig, folder: str) -> list[Path]:
    return sorted((config.output.output_dir / "validation" / folder).glob("*.mp4"))


def run_validate(config: RunConfig, folder: Path, *, lora: bool = False) -> None:
    loras = [(config.output.output_dir / LORA_FILE, 1.0)] if lora else []
    validate(config, config_dir=folder, loras=loras, prompts=[], image=None)


def test_validate_repeats_the_renders_of_the_run(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    config = make_run(
        tmp_path,
        [video_entry(clips)],
        max_train_steps=3,
        learning_rate=1e-2,
        validation_on_startup=True,
        validation_step_interval=3,
        validation_prompt="a red circle moves right on a blue background",
    )
    train(config, config_dir=tmp_path)
    run_validate(config, tmp_path)
    run_validate(config, tmp_path, lora=True)
    [base], [first] = renders(config, "base"), renders(config, "step_000000")
    [tuned], [last] = renders(config, Path(LORA_FILE).stem), renders(config, "step_000003")
    assert base.name == "prompt_64x64_42.mp4"
    assert np.array_equal(frames(base), frames(first))
    assert np.array_equal(frames(tuned), frames(last))
    assert not np.array_equal(frames(base), frames(tuned))


def test_a_render_broken_off_leaves_no_record_of_the_one_before(tmp_path: Path, monkeypatch) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    arguments = {"config_dir": tmp_path, "loras": [], "prompts": ["a"], "image": None}
    validate(config, **arguments)
    record = config.output.output_dir / "validation" / "base" / "renders.json"
    assert record.is_file()
    monkeypatch.setattr("longcat_tune.runs.render.frame_grid", lambda _: 1 / 0)
    other = make_run(tmp_path, [], data_backend_config=None, validation_guidance=1.0)
    with pytest.raises(ZeroDivisionError):
        validate(other, **arguments)
    assert not record.exists()


def test_renders_of_other_prompts_stay_with_the_same_weights_and_go_with_others(
    tmp_path: Path, monkeypatch
) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    base = config.output.output_dir / "validation" / "base"

    def shown(*prompts: str) -> list[str]:
        validate(config, config_dir=tmp_path, loras=[], prompts=prompts, image=None)
        page = (base.parent / "index.html").read_text()
        named = [video.name for video in read_record(base).videos]
        assert all(f'"base/{name}_64x64_42.mp4"' in page for name in named)
        assert sorted(path.name for path in renders(config, "base")) == sorted(
            f"{name}_64x64_42.mp4" for name in named
        )
        return named

    assert shown("a") == ["a"]
    made = (base / "a_64x64_42.mp4").stat().st_mtime_ns
    height = Image.open(base / "grid.png").height
    assert shown("b") == ["a", "b"]
    assert Image.open(base / "grid.png").height == 2 * height
    assert shown("a") == ["a", "b"]
    assert (base / "a_64x64_42.mp4").stat().st_mtime_ns == made
    monkeypatch.setattr("longcat_tune.runs.validate._identity", lambda *_: "other weights")
    assert shown("c", "b") == ["c", "b"]
    assert Image.open(base / "grid.png").height == 2 * height


def test_rendering_changes_nothing_in_the_training(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    weights = []
    for name, keys in {
        "with": {"validation_step_interval": 1, "validation_on_startup": True},
        "without": {},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        config = make_run(
            folder, [video_entry(clips)], max_train_steps=3, lora_dropout=0.3, validation_prompt="a", **keys
        )
        if name == "without":
            torch.manual_seed(123)
        train(config, config_dir=folder)
        weights.append(load_file(config.output.output_dir / LORA_FILE))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("own_first_frame", [False, True])
def test_a_held_out_split_gives_captions_and_start_images(tmp_path: Path, own_first_frame: bool) -> None:
    """The data layout of the image-to-video quickstart, with a validation split of the same structure."""
    datasets = []
    for split in ("train", "val"):
        clips = make_clips(tmp_path / split, 2, size=(64, 64))
        entry = video_entry(clips, id=f"longcat-video-{split}", is_i2v=True)
        if not own_first_frame:
            stills = tmp_path / f"{split}-stills"
            stills.mkdir()
            for number in range(2):
                picture = np.full((64, 64, 3), 60 + 120 * number, np.uint8)
                Image.fromarray(picture).save(stills / f"clip-{number}.png")
            entry["conditioning_data"] = [f"{split}-cond"]
            datasets.append(
                {
                    "id": f"{split}-cond",
                    "dataset_type": "conditioning",
                    "instance_data_dir": str(stills),
                    "caption_strategy": None,
                }
            )
        datasets.append(entry)
    config = make_run(
        tmp_path,
        datasets,
        validation_using_datasets=True,
        eval_dataset_id="longcat-video-val",
        num_eval_images=2,
        validation_step_interval=2,
    )
    train(config, config_dir=tmp_path)
    shown = renders(config, "step_000002")
    assert [path.name for path in shown] == ["clip-0_64x64_42.mp4", "clip-1_64x64_42.mp4"]
    record = json.loads((shown[0].parent / "renders.json").read_text())
    assert all(entry["start_image"] for entry in record["renders"])
    if not own_first_frame:
        first = [frames(path)[0].mean() for path in shown]
        assert first[1] - first[0] > 60
    trained = json.loads((config.output.output_dir / "plan.json").read_text())["datasets"]
    assert {entry["id"]: entry["trained"] for entry in trained} == {
        "longcat-video-train": True,
        "longcat-video-val": False,
    }


def test_what_changes_a_picture_renders_it_again(tmp_path: Path) -> None:
    times = []
    for keys in ({}, {}, {"flow_schedule_shift": 3.0}, {"flow_schedule_shift": 3.0, "framerate": 30}):
        config = make_run(tmp_path, [], validation_prompt="a", data_backend_config=None, **keys)
        run_validate(config, tmp_path)
        times.append(renders(config, "base")[0].stat().st_mtime_ns)
    assert times[0] == times[1] < times[2] < times[3]


def test_validate_looks_only_at_the_clips_it_renders_from(tmp_path: Path) -> None:
    clips, val = make_clips(tmp_path / "train", 2), make_clips(tmp_path / "val", 1)
    (clips / "clip-0.txt").unlink()
    datasets = [video_entry(clips), video_entry(val, id="val", is_i2v=True)]
    config = make_run(tmp_path, datasets, validation_using_datasets=True, eval_dataset_id="val")
    run_validate(config, tmp_path)
    assert [path.name for path in renders(config, "base")] == ["clip-0_64x64_42.mp4"]
    assert len(list(tmp_path.rglob("*.latents.safetensors"))) == 1


def test_prompts_of_the_command_line_win_and_name_their_files(tmp_path: Path) -> None:
    config = make_run(tmp_path, [], validation_prompt="not this", data_backend_config=None)
    prompts = ["A cat, on a mat!", "a dog"]
    validate(config, config_dir=tmp_path, loras=[], prompts=prompts, image=None)
    assert [path.name for path in renders(config, "base")] == [
        "A-cat-on-a-mat_64x64_42.mp4",
        "a-dog_64x64_42.mp4",
    ]


def test_a_start_image_that_does_not_exist_is_named(tmp_path: Path) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    with pytest.raises(ConfigError, match=r"--image \(.*no\.png\) does not exist; give the path"):
        validate(config, config_dir=tmp_path, loras=[], prompts=["a"], image=tmp_path / "no.png")


def test_renders_of_two_loras_or_strengths_lie_apart(tmp_path: Path) -> None:
    config = make_run(tmp_path, [], data_backend_config=None)
    out = config.output.output_dir
    weights = {
        "blocks.0.attn.proj.lora_A.weight": torch.ones(2, 192) / 96,
        "blocks.0.attn.proj.lora_B.weight": torch.ones(192, 2),
    }
    lora = LoraWeights(weights, {"blocks.0.attn.proj": 2.0})
    inside = [out / "checkpoint-000001" / LORA_FILE, out / "checkpoint-000001" / "ema" / LORA_FILE]
    outside = [tmp_path / name / LORA_FILE for name in ("a", "b")]
    for path in (*inside, *outside):
        write_lora(path, lora)
    arguments = {"config_dir": tmp_path, "prompts": ["a"], "image": None}
    for loras in (
        [(inside[0].parent, 1.0)],
        [(inside[1], 0.0)],
        [(inside[1], 1.0)],
        [(outside[0], 1.0)],
        [(outside[1], 1.0)],
        [],
    ):
        validate(config, loras=loras, **arguments)
    shown = {folder.name: frames(next(folder.glob("*.mp4"))) for folder in (out / "validation").glob("*/")}
    hashed = {name for name in shown if name.startswith("pytorch_lora_weights-")}
    assert len(hashed) == 2
    assert shown.keys() - hashed == {
        "base",
        "checkpoint-000001",
        "checkpoint-000001-ema@0",
        "checkpoint-000001-ema",
    }
    assert np.array_equal(shown["base"], shown["checkpoint-000001-ema@0"])
    assert not np.array_equal(shown["base"], shown["checkpoint-000001-ema"])
