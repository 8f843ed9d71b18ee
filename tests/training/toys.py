"""A model of a few numbers with the transformer's signature, and batches for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from longcat_tune.flow.density import SigmaDensity
from longcat_tune.training.evaluation import HeldOut, HeldOutClip, eval_sigmas
from longcat_tune.training.interfaces import Abandoning, LoopHooks, LoopSettings, LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.training.metrics import StepMetrics
from longcat_tune.training.optimizers import OptimizerSettings, build_optimizer
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.schedules import AppliedSchedule, Schedule
from longcat_tune.types import Batch


class ToyModel(nn.Module):
    """Mixes channels by a learned matrix, adds text and time; dropout as in a LoRA."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        generator = Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(4, 4, generator=generator) * 0.1)
        self.time = nn.Parameter(torch.zeros(4))
        self.text = nn.Parameter(torch.randn(4, 6, generator=generator) * 0.1)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, *, num_cond_latents: int = 0
    ) -> Tensor:
        assert timestep[:, :num_cond_latents].eq(0).all()
        mixed = torch.einsum("dc,bcthw->bdthw", self.mix, self.dropout(latents))
        caption = (text * mask[..., None]).mean(1) @ self.text.T
        time = self.time[None, :, None] * timestep[:, None] / 1000
        return mixed + (caption[..., None] + time)[..., None, None]


@dataclass(frozen=True)
class ToyGroup:
    batches: tuple[Batch, ...]
    epoch: int
    cursor: tuple[int, ...]


def batch(number: int, *, samples: int = 1, cond: int = 0, dtype: torch.dtype = torch.bfloat16) -> Batch:
    generator = Generator().manual_seed(number)
    return Batch(
        latents_BCTHW=torch.randn(samples, 4, 3, 2, 2, generator=generator).to(dtype),
        text_BLD=torch.randn(samples, 5, 6, generator=generator),
        mask_BL=torch.ones(samples, 5, dtype=torch.long),
        num_cond_latents=cond,
        clip_ids=tuple(f"clips/{number}-{sample}.mp4" for sample in range(samples)),
    )


def held_out_clip(number: int, *, cond: int = 0) -> HeldOutClip:
    return HeldOutClip(f"{number}.mp4", batch(number, cond=cond))


def held_out(*clips: HeldOutClip, identity: str = "toys") -> HeldOut:
    """Three clips of three tasks, unless others are given."""
    those = clips or tuple(held_out_clip(1000 + cond, cond=cond) for cond in range(3))
    return HeldOut(lambda: those, eval_sigmas(12.0), identity)


def groups(start: int = 0, *, accumulation: int = 2, steps_per_epoch: int = 3) -> Iterator[ToyGroup]:
    """Endless; the cursor is the number of groups before it."""
    number = start
    while True:
        first = number * accumulation
        yield ToyGroup(
            tuple(batch(first + i, samples=1 + i % 2, cond=i % 2) for i in range(accumulation)),
            number // steps_per_epoch,
            (number + 1,),
        )
        number += 1


def parts(model: nn.Module | None = None, *, warmup: int = 4, completed: int = 0) -> LoopParts:
    model = ToyModel() if model is None else model
    settings = OptimizerSettings(learning_rate=1e-2)
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = build_optimizer(settings, trained, is_up=lambda _: False)
    schedule = AppliedSchedule(
        Schedule("constant_with_warmup", warmup_steps=warmup), optimizer, completed_steps=completed
    )
    return LoopParts(model, optimizer, schedule, Accelerator(cpu=True), SigmaDensity().sample)


@dataclass
class Recorder:
    """Hooks that remember in which order they were called."""

    calls: list[tuple[str, int]]
    metrics: list[StepMetrics]
    states: list[LoopState]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def hooks(self) -> LoopHooks:
        return LoopHooks(
            save=self.save,
            validate=self.validate,
            on_step=self.metrics.append,
            on_event=lambda name, fields: self.events.append((name, dict(fields))),
        )

    def save(self, state: LoopState) -> None:
        self.calls.append(("save", state.step))
        self.states.append(state)

    def validate(self, step: int, _abandoning: Abandoning) -> None:
        self.calls.append(("validate", step))

    @property
    def saves(self) -> list[int]:
        return [step for name, step in self.calls if name == "save"]

    @property
    def renders(self) -> list[int]:
        return [step for name, step in self.calls if name == "validate"]


def recorder() -> Recorder:
    return Recorder([], [], [])


def with_latents(clean: Batch, value: float) -> Batch:
    return replace(clean, latents_BCTHW=torch.full_like(clean.latents_BCTHW, value))


def settings(max_steps: int, **changes: Any) -> LoopSettings:
    return LoopSettings(max_steps=max_steps, seed=42, **changes)


def train(max_steps: int, **changes: Any) -> tuple[ToyModel, Recorder]:
    model, seen = ToyModel(), recorder()
    run_loop(parts(model), groups(), settings=settings(max_steps, **changes), hooks=seen.hooks())
    return model, seen


def weights(model: torch.nn.Module) -> Tensor:
    """The trained ones in a row."""
    return torch.cat([one.detach().flatten() for one in model.parameters() if one.requires_grad])


@contextmanager
def untrained(model: ToyModel) -> Iterator[None]:
    """Within it the model is what it began as."""
    trained = copy.deepcopy(model.state_dict())
    model.load_state_dict(ToyModel().state_dict())
    yield
    model.load_state_dict(trained)


@dataclass(frozen=True)
class Switching:
    """Weights of two sets that remember when which was put in place."""

    entered: list[str]

    @contextmanager
    def shipped(self) -> Iterator[None]:
        self.entered.append("in")
        yield
        self.entered.append("out")

    def take_up(self) -> None:
        self.entered.append("take up")


class Filling(ToyModel):
    """Runs out of memory at some calls of its forward, in the first micro batch or in the second."""

    def __init__(self, *calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.called = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called += 1
        if self.called in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(*args, **kwargs)
