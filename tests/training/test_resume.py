"""A run that was stopped and resumed ends where an uninterrupted one ends, to the bit, through real files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, read_lora, write_lora
from longcat_tune.checkpoint.optimizer_file import read_optimizer
from longcat_tune.checkpoint.run_state import (
    RunState,
    latest_checkpoint,
    save_checkpoint,
)
from longcat_tune.errors import InterruptedRunError
from longcat_tune.flow.density import SigmaDensity
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora, load_lora_state, lora_alphas, lora_state
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.training.ema import Ema
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState, SameWeights
from longcat_tune.training.loop import run_loop
from longcat_tune.training.metrics import StepMetrics
from longcat_tune.training.optimizers import OptimizerSettings, build_optimizer
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.schedule_free import ScheduleFreeWeights
from longcat_tune.training.schedules import AppliedSchedule, Schedule, ScheduleName
from longcat_tune.types import Batch
from tests.training.toys import ToyGroup


def batch(number: int) -> Batch:
    generator = Generator().manual_seed(number)
    return Batch(
        latents_BCTHW=torch.randn(1 + number % 2, 4, 3, 4, 4, generator=generator).bfloat16(),
        text_BLD=torch.randn(1 + number % 2, 6, 8, generator=generator).bfloat16(),
        mask_BL=torch.tensor([[1, 1, 1, 1, 0, 0]]).repeat(1 + number % 2, 1),
        num_cond_latents=number % 2,
        clip_ids=(f"clip {number}",) * (1 + number % 2),
    )


def groups(start: int) -> Iterator[ToyGroup]:
    for number in count(start):
        yield ToyGroup((batch(2 * number), batch(2 * number + 1)), number // 4, (number // 4, number + 1))


@dataclass(frozen=True)
class Kind:
    """What a run is trained with."""

    optimizer: OptimizerSettings
    schedule: ScheduleName = "constant_with_warmup"
    bf16: bool = False
    ema: bool = False


ADAMW = OptimizerSettings(learning_rate=1e-2)
KINDS = {
    "adamw": Kind(ADAMW),
    "bf16": Kind(ADAMW, bf16=True),
    "ema": Kind(ADAMW, ema=True, bf16=True),
    "lora plus, cosine": Kind(OptimizerSettings(learning_rate=1e-2, lora_plus_ratio=4), "cosine"),
    "schedule-free": Kind(OptimizerSettings("adamw_schedulefree", learning_rate=1e-2)),
    "prodigy": Kind(OptimizerSettings("prodigy", learning_rate=1.0), "cosine", ema=True),
    "adafactor": Kind(OptimizerSettings("adafactor", learning_rate=1e-2), "rex"),
    "muon": Kind(OptimizerSettings("muon", learning_rate=1e-2)),
    "adamw_8bit": Kind(OptimizerSettings("adamw_8bit", learning_rate=1e-2)),
}


class Run:
    """What `runs` does: build, resume if there is something, train, save."""

    def __init__(self, output_dir: Path, kind: Kind, *, stop_at: int | None = None) -> None:
        torch.seed()  # Every process starts with another global state.
        self.output_dir = output_dir
        self.kind = kind
        self.bf16 = kind.bf16
        self.stop_at = stop_at
        self.losses: list[float] = []
        self.model = self.built()
        named = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
        ups = {id(one) for name, one in named if ".lora_B." in name}
        self.optimizer = build_optimizer(
            kind.optimizer, (one for _, one in named), is_up=lambda one: id(one) in ups
        )
        self.ema = Ema(named, decay=0.9) if kind.ema else None

    def built(self) -> LongCatVideoTransformer:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LongCatVideoTransformer(4, 4, 32, 1, 2, 8, 4, 16, 16)
        model.to(torch.bfloat16 if self.bf16 else torch.float32)
        names = lora_target_modules(model, "all-linear")
        generator = Generator().manual_seed(42)
        add_lora(model, targets=names, rank=2, alpha=4, dropout=0.2, generator=generator, autocast=self.bf16)
        enable_recompute(model.blocks)
        return model

    def train(
        self, max_steps: int, *, save_every: int = 1000, validate_every: int | None = None
    ) -> dict[str, Tensor]:
        start = LoopState()
        if saved := latest_checkpoint(self.output_dir):
            read_optimizer(saved.folder, self.optimizer)
            load_lora_state(self.model, read_lora(saved.folder / LORA_FILE).weights)
            start = LoopState(saved.state.step, saved.state.epoch, saved.state.cursor)
            if self.ema is not None:
                self.ema.resume(saved.folder)
        schedule = Schedule(self.kind.schedule, warmup_steps=7, total_steps=max_steps)
        free = self.kind.optimizer.name == "adamw_schedulefree"
        parts = LoopParts(
            self.model,
            self.optimizer,
            AppliedSchedule(schedule, self.optimizer, completed_steps=start.step),
            Accelerator(cpu=True),
            SigmaDensity().sample,
            lambda: torch.autocast("cpu", torch.bfloat16, enabled=self.bf16),
            weights=ScheduleFreeWeights(self.optimizer) if free else SameWeights(),
            ema=self.ema,
        )
        settings = LoopSettings(
            max_steps=max_steps,
            seed=42,
            save_every=save_every,
            max_grad_norm=0.5,
            validate_every=validate_every,
        )
        hooks = LoopHooks(save=self.save, validate=lambda step, abandoning: None, on_step=self.on_step)
        first = start.cursor[1] if start.cursor else 0
        run_loop(parts, groups(first), settings=settings, hooks=hooks, start=start)
        return lora_state(self.model)

    def on_step(self, metrics: StepMetrics) -> None:
        self.losses.append(metrics.loss)
        if metrics.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def save(self, state: LoopState) -> None:
        lora = LoraWeights(lora_state(self.model), lora_alphas(self.model))

        def write_files(folder: Path) -> None:
            write_lora(folder / LORA_FILE, lora)
            if self.ema is not None:
                self.ema.write(folder)

        save_checkpoint(
            self.output_dir,
            RunState(state.step, state.epoch, state.cursor),
            self.optimizer,
            write_files=write_files,
            total_limit=2,
        )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_ten_and_ten_steps_equal_twenty_to_the_bit(tmp_path: Path, kind: Kind) -> None:
    if kind.optimizer.name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    whole = Run(tmp_path / "whole", kind)
    # Saved and rendered at other steps: neither may leave a trace.
    expected = whole.train(20, save_every=6, validate_every=4)
    first = Run(tmp_path / "parts", kind, stop_at=10)
    with pytest.raises(InterruptedRunError):
        first.train(20)
    second = Run(tmp_path / "parts", kind)
    got = second.train(20)
    assert first.losses + second.losses == whole.losses
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert all(got[key].abs().max() > 0 for key in got)
    assert_equal_files(*(tmp_path / name / "checkpoint-000020" for name in ("whole", "parts")))


def assert_equal_files(one: Path, other: Path) -> None:
    """Every file of two checkpoints holds the same, optimizer and average too."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - {"training_state.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_saved_file_holds_what_was_trained(tmp_path: Path) -> None:
    trained = Run(tmp_path, KINDS["bf16"]).train(2)
    lora = read_lora(tmp_path / "checkpoint-000002")
    assert set(lora.alphas.values()) == {4.0}
    assert all(torch.equal(lora.weights[key], trained[key]) for key in trained)


def test_a_schedule_free_run_saves_its_average_and_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, KINDS["schedule-free"])
    stepped = run.train(8)
    saved = read_lora(tmp_path / "checkpoint-000008").weights
    assert all(not torch.equal(saved[key], stepped[key]) for key in saved)
    run.optimizer.eval()  # type: ignore[attr-defined]
    average = lora_state(run.model)
    assert all(torch.equal(saved[key], average[key]) for key in saved)


def test_a_changed_learning_rate_takes_effect_on_resume(tmp_path: Path) -> None:
    Run(tmp_path, KINDS["adamw"]).train(8)
    resumed = Run(tmp_path, KINDS["adamw"])
    resumed.optimizer.param_groups[0]["lr"] = 1e-5
    seen: list[float] = []
    resumed.on_step = lambda metrics: seen.append(metrics.learning_rate)  # type: ignore[method-assign]
    resumed.train(9)
    assert seen == [1e-5]
