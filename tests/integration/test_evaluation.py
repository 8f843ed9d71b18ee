"""Held-out loss on the miniature: the number anybody computes from the caches, in every run; and it falls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longcat_tune.checkpoint.lora_file import LORA_FILE, read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.data.demo import Scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.video import write_mp4
from longcat_tune.errors import DataError
from longcat_tune.model.lora import load_lora
from longcat_tune.runs.train import train
from longcat_tune.training.eval_result import ClipLosses
from longcat_tune.training.evaluation import eval_noise, eval_sigmas, measure
from tests.builders import events, make_clips, make_run, transformer, video_entry

CPU = torch.device("cpu")
EXACT = {"base_model_precision": "fp32", "mixed_precision": "no"}


def trained(
    folder: Path, train_on: dict[str, Any], *measured: dict[str, Any], **keys: Any
) -> tuple[RunConfig, list[dict[str, Any]]]:
    """Run in the folder; returns its evaluations in order."""
    folder.mkdir(exist_ok=True)
    config = make_run(folder, [train_on, *measured], **keys)
    train(config, config_dir=folder)
    return config, evaluations(config)


def evaluations(config: RunConfig) -> list[dict[str, Any]]:
    return events(config, "evaluation")


def numbers(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in {"time", "seconds"}}


def held_out_entry(clips: Path, **changes: Any) -> dict[str, Any]:
    return video_entry(clips, **({"id": "val", "dataset_type": "eval"} | changes))


def latents_of(config: RunConfig, dataset: str) -> list[Path]:
    return sorted((config.output.output_dir / "cache" / "vae" / dataset).glob("*.latents.safetensors"))


@torch.no_grad()
def reference(config: RunConfig, clip: str, *, cond: int, lora: bool) -> float:
    """The loss on the only held-out clip, from its cached files."""
    model = transformer(config)
    if lora:
        state = read_lora(config.output.output_dir / LORA_FILE)
        load_lora(model, state.weights, state.alphas)
    clean = read_latents(*latents_of(config, "val")).float()[None]
    texts = config.output.output_dir.rglob("cache/**/*.text.safetensors")
    text, mask = max((read_text(path) for path in texts), key=lambda one: len(one.text_LD)).padded()
    losses = []
    for level, sigma in enumerate(eval_sigmas(12.0)):
        noise = eval_noise(clip, level, clean.shape)
        noised = (1 - sigma) * clean + sigma * noise
        noised[:, :, :cond] = clean[:, :, :cond]
        timestep = 1000 * sigma * (torch.arange(3) >= cond)[None]
        answer = model(noised, timestep, text[None], mask[None], num_cond_latents=cond)
        losses.append((answer - (clean - noise))[:, :, cond:].square().mean())
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("cond", [0, 1], ids=["t2v", "i2v"])
def test_the_loss_before_and_after_training_equals_a_reference_from_the_caches(
    tmp_path: Path, cond: int
) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    entry = video_entry(clips, is_i2v=cond == 1)
    config, (first, last) = trained(
        tmp_path,
        entry,
        held_out_entry(clips, is_i2v=cond == 1),
        learning_rate=1e-2,
        lora_dropout=0.3,
        **EXACT,
    )
    assert (first["step"], last["step"]) == (0, 2)
    assert first["loss"] == pytest.approx(reference(config, "clip-0.mp4", cond=cond, lora=False), rel=1e-5)
    assert last["loss"] == pytest.approx(reference(config, "clip-0.mp4", cond=cond, lora=True), rel=1e-5)
    assert last["loss"] != pytest.approx(first["loss"], rel=1e-3)
    assert list(first["by_task"]) == [("t2v", "i2v")[cond]]


def test_other_runs_measure_the_same_base(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    long = make_clips(tmp_path / "long", 3, size=(128, 64), frames=30)
    val = held_out_entry(
        long,
        task_mix={"t2v": 1, "i2v": 1},
        crop=True,
        crop_style="random",
        crop_aspect="square",
        video={"num_frames": 9, "clip_selection": "random"},
    )
    _, (one, _) = trained(tmp_path / "one", video_entry(clips), val, **EXACT)
    others = {"seed": 7, "lora_rank": 2, "learning_rate": 1e-2, "flow_use_uniform_schedule": True}
    renamed = val | {"id": "validation", "dataset_type": "video"}
    _, (other, _) = trained(
        tmp_path / "other",
        video_entry(clips),
        renamed,
        eval_dataset_id="validation",
        loss_type="huber",
        **others,
        **EXACT,
    )
    assert numbers(one) == numbers(other)
    assert list(one["by_task"]) == ["t2v", "i2v"]
    assert one["clips"] == 3


def test_a_resumed_run_tells_what_a_whole_one_tells_and_evaluation_changes_no_weight(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 3)
    entry, val = video_entry(clips), held_out_entry(clips)
    keys = {"eval_steps_interval": 2, "checkpoint_step_interval": 3, "lora_dropout": 0.2}
    whole, told = trained(tmp_path / "whole", entry, val, max_train_steps=6, **keys)
    trained(tmp_path / "halves", entry, val, max_train_steps=3, **keys)
    halves, resumed = trained(tmp_path / "halves", entry, val, max_train_steps=6, **keys)
    assert [one["step"] for one in told] == [0, 2, 4, 6]
    # The first half ended with one more, at its last step, which the second does not repeat.
    assert [one["step"] for one in resumed] == [0, 2, 3, 4, 6]
    assert [numbers(one) for one in resumed if one["step"] != 3] == [numbers(one) for one in told]
    bare, none = trained(tmp_path / "bare", entry, max_train_steps=6, lora_dropout=0.2)
    assert none == []
    weights = [read_lora(config.output.output_dir / LORA_FILE).weights for config in (whole, halves, bare)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
        assert torch.equal(tensor, weights[2][name])


def test_only_the_clips_that_are_measured_are_encoded_once(tmp_path: Path, caplog) -> None:
    clips, val = make_clips(tmp_path / "clips", 1), make_clips(tmp_path / "val", 3, frames=40)
    for caption in val.glob("*.txt"):
        caption.write_text(f"{caption.read_text()}\na second caption of {caption.stem}")
    entry = held_out_entry(val, video={"num_frames": 9, "clip_selection": "random"})
    with caplog.at_level("INFO"):
        config, told = trained(tmp_path, video_entry(clips), entry, num_eval_images=2, max_train_steps=1)
    assert len(latents_of(config, "val")) == 2
    # The empty prompt's, the trained clip's and two first captions, of which one is the trained clip's.
    assert len(list(config.output.output_dir.rglob("cache/**/*.text.safetensors"))) == 3
    assert told[0]["clips"] == 2
    line = "evaluation: the loss on 2 of 3 held-out clips of val (num_eval_images 2) at 8 noise levels, every"
    assert f"{line} 500 steps" in caplog.messages
    assert any(message.startswith("evaluation at step 1: loss ") for message in caplog.messages)


def test_a_held_out_clip_that_went_missing_does_not_end_the_run(tmp_path: Path, caplog) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    keys = {"max_train_steps": 2, "eval_steps_interval": 1}
    reads = iter(range(100))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(reads) == 1:
            raise DataError("cache file x is missing")
        return measure(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longcat_tune.training.evaluator.measure", failing)
        _, told = trained(tmp_path, video_entry(clips), held_out_entry(clips), **keys)
    assert [one["step"] for one in told] == [0, 2]
    assert "training goes on without the evaluation at step 1: cache file x is missing" in caplog.messages


def test_the_checkpoint_of_the_best_evaluation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    losses = iter([0.5, 0.2, 0.3, 0.4, 0.3])

    def scripted(*_: Any, **__: Any) -> tuple[ClipLosses, ...]:
        return (ClipLosses("val/clip-0.mp4", 0, (next(losses),) * 8),)

    monkeypatch.setattr("longcat_tune.training.evaluator.measure", scripted)
    keys = {"eval_steps_interval": 1, "checkpoint_step_interval": 2, "checkpoints_total_limit": 2}
    with caplog.at_level("INFO"):
        config, _ = trained(tmp_path, video_entry(clips), held_out_entry(clips), max_train_steps=4, **keys)
    kept = sorted(path.name for path in config.output.output_dir.glob("checkpoint-*"))
    # The best one, though no checkpoint was due then, and the last one.
    assert kept == ["checkpoint-000001", "checkpoint-000004"]
    assert "evaluation at step 3: loss 0.4000 (base 0.5000, best 0.2000 at 1)" in caplog.messages


def test_an_interval_without_held_out_clips_is_refused(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    with pytest.raises(DataError, match=r"eval_steps_interval \(5\) needs held-out clips; name a dataset in"):
        trained(tmp_path, video_entry(clips), eval_steps_interval=5)


def concept(folder: Path, numbers: range) -> Path:
    """Clips of one concept, a purple triangle that moves right on yellow, each at a place of its own."""
    folder.mkdir(parents=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        scene = Scene(
            "triangle",
            "purple",
            "right",
            "yellow",
            x=rng.uniform(0.3, 0.7),
            y=rng.uniform(0, 1),
            size=rng.uniform(0.14, 0.26),
            angle=rng.uniform(-0.15, 0.15),
        )
        write_mp4(folder / f"clip-{number}.mp4", render(scene, 64, 64, 9), 15.0)
        (folder / f"clip-{number}.txt").write_text(scene.caption)
    return folder


def frozen_hash(model: nn.Module) -> str:
    """Of all weights that are not trained, whatever their names became."""
    digests = [
        hashlib.sha256(weight.detach().view(torch.uint8).numpy().tobytes()).hexdigest()
        for weight in model.parameters()
        if not weight.requires_grad
    ]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


class Silent(nn.Module):
    """Knows nothing: answers 0, the mean of all answers."""

    def forward(self, latents: Tensor, *_: Tensor, num_cond_latents: int = 0) -> Tensor:
        return torch.zeros_like(latents)


@pytest.mark.slow
@pytest.mark.parametrize("is_i2v", [False, True], ids=["t2v", "i2v"])
def test_a_concept_of_ten_clips_is_learned_and_the_base_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_i2v: bool
) -> None:
    seen: list[tuple[str, float]] = []

    def watched(model: nn.Module, clips: Any, **keys: Any) -> Any:
        those = list(clips)
        silent = [loss for row in measure(Silent(), those, **keys) for loss in row.losses]
        seen.append((frozen_hash(model), sum(silent) / len(silent)))
        return measure(model, those, **keys)

    monkeypatch.setattr("longcat_tune.training.evaluator.measure", watched)
    config, (base, last) = trained(
        tmp_path,
        video_entry(concept(tmp_path / "clips", range(8)), is_i2v=is_i2v),
        held_out_entry(concept(tmp_path / "val", range(8, 10)), is_i2v=is_i2v),
        max_train_steps=150,
        learning_rate=3e-3,
        lora_target="all-linear",
        lora_rank=8,
        gradient_checkpointing=False,
    )
    assert (base["step"], last["step"], last["clips"]) == (0, 150, 2)
    assert last["loss"] <= 0.85 * base["loss"], f"{base['loss']:.4f} -> {last['loss']:.4f}"
    assert all(after <= 0.85 * before for before, after in zip(base["losses"], last["losses"], strict=True))
    # A random base that grows quiet has learned nothing yet: 3.3 falls to 2.5 so, and to 0.7 in this run.
    knows_nothing = seen[0][1]
    assert last["loss"] <= 0.5 * knows_nothing, f"{knows_nothing:.4f} -> {last['loss']:.4f}"
    untouched = transformer(config)
    untouched.requires_grad_(requires_grad=False)
    assert {name for name, _ in seen} == {frozen_hash(untouched)}
