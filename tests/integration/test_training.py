"""Training on the miniature, from clips on disk: it learns, resumes exactly, and its LoRA loads elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE, read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.errors import ConfigError
from longcat_tune.flow.loss import flow_loss
from longcat_tune.flow.noising import add_noise
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs.train import train
from longcat_tune.training.step import noise_generator
from tests.builders import events, make_clips, make_run, transformer, video_entry

CPU = torch.device("cpu")
FIXED_SIGMAS = (0.3, 0.6, 0.9, 0.97)


def cached(config: RunConfig, kind: str) -> list[Path]:
    return sorted(config.output.output_dir.rglob(f"cache/**/*.{kind}.safetensors"))


def clip_and_text(config: RunConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The one cached clip, with the longest cached text: its caption."""
    latents = read_latents(cached(config, "latents")[0]).float()[None]
    features = max((read_text(path) for path in cached(config, "text")), key=lambda f: len(f.text_LD))
    text_LD, mask_L = features.padded()
    return latents, text_LD[None], mask_L[None]


@torch.no_grad()
def loss_at_fixed_noise(model: LongCatVideoTransformer, config: RunConfig) -> float:
    latents, text, mask = clip_and_text(config)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for sigma in FIXED_SIGMAS:
        noise = torch.randn(latents.shape, generator=generator)
        noised = add_noise(latents, noise, torch.tensor([sigma]), num_cond_latents=0)
        prediction = model(noised.latents_BCTHW, noised.timestep_BT, text, mask)
        losses.append(flow_loss(prediction, noised.target_BCTHW, num_cond_latents=0))
    return torch.cat(losses).mean().item()


def final_lora(config: RunConfig) -> dict[str, Tensor]:
    return load_file(config.output.output_dir / LORA_FILE)


def test_200_steps_on_one_clip_lower_the_loss_by_a_fifth(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", count=1)
    config = make_run(
        tmp_path,
        [video_entry(clips)],
        max_train_steps=200,
        lora_target="all-linear",
        lora_rank=16,
        gradient_checkpointing=False,
        caption_dropout_probability=0,
    )
    train(config, config_dir=tmp_path)
    model = transformer(config)
    before = loss_at_fixed_noise(model, config)
    lora = read_lora(config.output.output_dir / LORA_FILE)
    load_lora(model, lora.weights, lora.alphas)
    after = loss_at_fixed_noise(model, config)
    assert after <= 0.8 * before, f"{before:.4f} -> {after:.4f}"
    assert len(events(config, "step")) == 200


def test_the_first_step_s_loss_equals_a_reference_computed_from_the_cache(tmp_path: Path) -> None:
    clips, stills = make_clips(tmp_path / "clips", count=1), tmp_path / "stills"
    stills.mkdir()
    Image.new("RGB", (64, 64), "orange").save(stills / "clip-0.png")
    conditioning = {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": str(stills)}
    config = make_run(
        tmp_path,
        [video_entry(clips, is_i2v=True, conditioning_data=["stills"]), conditioning],
        max_train_steps=1,
        base_model_precision="fp32",
        mixed_precision="no",
        caption_dropout_probability=0,
    )
    train(config, config_dir=tmp_path)

    [still] = [path for path in cached(config, "latents") if path.parent.name == "stills"]
    [clip] = [path for path in cached(config, "latents") if path.parent.name == "clips"]
    latents = read_latents(clip).float()[None]
    latents[:, :, :1] = read_latents(still).float()
    _, text, mask = clip_and_text(config)
    generator = noise_generator(config.training.seed, step=1, micro_batch=0)
    u = torch.sigmoid(torch.randn(1, generator=generator))
    sigma = 12 * u / (1 + 11 * u)
    noise = torch.randn(latents.shape, generator=generator)
    noised = (1 - sigma) * latents + sigma * noise
    noised[:, :, 0] = latents[:, :, 0]
    timestep = 1000 * sigma * torch.tensor([[0.0, 1, 1]])
    with torch.no_grad():
        prediction = transformer(config)(noised, timestep, text, mask, num_cond_latents=1)
    expected = (prediction - (latents - noise))[:, :, 1:].square().mean().item()
    assert events(config, "step")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_ten_steps_resumed_for_ten_more_equal_twenty_to_the_bit(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", count=3)
    keys = {"lora_dropout": 0.2, "gradient_accumulation_steps": 2, "lr_warmup_steps": 15}
    runs = {}
    for name in ("whole", "halves"):
        folder = tmp_path / name
        folder.mkdir()
        datasets = [video_entry(clips), video_entry(clips, id="i2v", is_i2v=True, repeats=1)]
        for steps in (20,) if name == "whole" else (10, 20):
            runs[name] = make_run(folder, datasets, max_train_steps=steps, **keys)
            train(runs[name], config_dir=folder)
    assert events(runs["halves"], "resume")[0]["step"] == 10
    whole, halves = final_lora(runs["whole"]), final_lora(runs["halves"])
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert any(weight.abs().sum() > 0 for name, weight in whole.items() if "lora_B" in name)
    losses = [[event["loss"] for event in events(runs[name], "step")] for name in runs]
    assert losses[0] == losses[1]


def test_changed_clips_go_on_at_the_same_step_of_the_new_order(tmp_path: Path, caplog) -> None:
    clips = make_clips(tmp_path / "clips", count=3)
    train(make_run(tmp_path, [video_entry(clips)], max_train_steps=2), config_dir=tmp_path)
    changed = [video_entry(clips, repeats=1)]
    with pytest.raises(ConfigError, match=r"made with other clips, in another order.*--accept_changes"):
        train(make_run(tmp_path, changed, max_train_steps=3), config_dir=tmp_path)
    config = make_run(tmp_path, changed, max_train_steps=3, accept_changes=True)
    with caplog.at_level("INFO"):
        train(config, config_dir=tmp_path)
    told = "Other batches than before: going on with step 3 of the new order, in epoch 0"
    assert told in caplog.messages
    state = json.loads((config.output.output_dir / "checkpoint-000003" / "training_state.json").read_text())
    assert state["state"]["cursor"] == [0, 3]


def test_a_run_that_fails_ends_its_events(tmp_path: Path, monkeypatch) -> None:
    clips = make_clips(tmp_path / "clips", count=1)
    config = make_run(tmp_path, [video_entry(clips)])
    monkeypatch.setattr("longcat_tune.runs.parts.build_optimizer", lambda *_, **_keys: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, config_dir=tmp_path)
    assert [event["how"] for event in events(config, "run_end")] == ["failed"]


def test_a_finished_run_run_again_does_nothing_twice(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", count=1)
    config = make_run(
        tmp_path, [video_entry(clips)], validation_prompt="a red circle", validation_on_startup=True
    )
    train(config, config_dir=tmp_path)
    made = {path: path.stat().st_mtime_ns for path in config.output.output_dir.rglob("*.*")}
    train(config, config_dir=tmp_path)
    again = {path: path.stat().st_mtime_ns for path in config.output.output_dir.rglob("*.*")}
    rewritten = {path.name for path in again if again[path] != made.get(path)}
    assert rewritten <= {"events.jsonl", "config.json", "plan.json"}
    assert len(events(config, "step")) == 2


def test_peft_s_own_loader_gives_our_render_s_model_output(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", count=1)
    # In float32 throughout: PEFT's loader would round the LoRA to the base's dtype.
    precision = {"base_model_precision": "fp32", "mixed_precision": "no"}
    config = make_run(tmp_path, [video_entry(clips)], max_train_steps=5, **precision)
    train(config, config_dir=tmp_path)
    path = config.output.output_dir / LORA_FILE

    ours = transformer(config)
    lora = read_lora(path)
    load_lora(ours, lora.weights, lora.alphas)

    theirs = transformer(config)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {key.removeprefix("transformer."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    targets = sorted({key.split(".lora_")[0] for key in state})
    peft_config = LoraConfig(
        r=json.loads(metadata["rank"]), lora_alpha=json.loads(metadata["alpha"]), target_modules=targets
    )
    inject_adapter_in_model(peft_config, theirs)
    report = set_peft_model_state_dict(theirs, state)
    assert not report.unexpected_keys

    latents, text, mask = clip_and_text(config)
    timestep = torch.tensor([500.0])
    with torch.no_grad():
        base = transformer(config)(latents, timestep, text, mask)
        expected = theirs(latents, timestep, text, mask)
        got = ours(latents, timestep, text, mask)
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_lora_says_which_base_and_step_it_belongs_to(tmp_path: Path) -> None:
    base = str(resolve_checkpoint(None, flavour="tiny"))
    datasets = [video_entry(make_clips(tmp_path / "clips", 1))]
    config = make_run(tmp_path, datasets, max_train_steps=1, pretrained_model_name_or_path=base)
    train(config, config_dir=tmp_path)
    stated = read_lora(config.output.output_dir / LORA_FILE).metadata
    names = ("base_model", "targets", "step", "rank", "alpha")
    # Not the folder, which means nothing elsewhere and is nobody's business.
    assert [stated[name] for name in names] == ["tiny", "attention", "1", "8", "8.0"]
