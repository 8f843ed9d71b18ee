"""Measure what the training loop costs on top of a bare torch loop; gives one JSON object with its machine.

    OMP_NUM_THREADS=1 python scripts/bench_loop.py --save

Both train a LoRA on a transformer of hidden size 512 and depth 8 with a clip of 1,000 tokens, in turns: a
bare step, then one of the loop, with everything it does from taking a batch to asking for the next (noise,
timestep, clipping, numbers for the log, one event written). The bare loop does forward, backward and step on
noise that is there already. Times of the process's processor are compared, which other work on the machine
disturbs least; wall times are given beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from longcat_tune.files import write_json_atomically
from longcat_tune.flow.density import SigmaDensity
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.training.interfaces import LoopHooks, LoopSettings
from longcat_tune.training.loop import run_loop
from longcat_tune.training.metrics import EventLog
from longcat_tune.training.optimizers import OptimizerSettings, build_optimizer
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.schedules import AppliedSchedule, Schedule
from longcat_tune.types import Batch

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PACKAGES = ("torch", "accelerate", "peft")
HIDDEN, DEPTH, HEADS = 512, 8, 4
LATENT_SHAPE = (16, 10, 20, 20)
"""Channels, frames, rows, columns: 10 x 10 x 10 tokens."""
TEXT_SHAPE = (512, 256)
WARMUP = 2
RATE = 1e-4


@dataclass(frozen=True)
class Group:
    """One step of one batch."""

    batches: tuple[Batch, ...]
    epoch: int = 0
    cursor: tuple[int, ...] = ()


@dataclass
class Times:
    """Seconds of each step of one loop."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def note(self, begun: tuple[float, float]) -> None:
        """Take in a step that began then and ends now."""
        processor, wall = clocks()
        self.processor.append(processor - begun[0])
        self.wall.append(wall - begun[1])


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def transformer() -> LongCatVideoTransformer:
    torch.manual_seed(0)
    model = LongCatVideoTransformer(
        hidden_size=HIDDEN, depth=DEPTH, num_heads=HEADS, caption_channels=TEXT_SHAPE[1]
    )
    # The released weights end with no zeros, but a fresh model does: then no gradient would reach the LoRA.
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(torch.bfloat16)
    add_lora(
        model,
        targets=lora_target_modules(model, "attention"),
        rank=8,
        alpha=8,
        generator=Generator().manual_seed(0),
        dropout=0.0,
        autocast=True,
    )
    enable_recompute(model.blocks)
    return model


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def clip(number: int) -> Batch:
    generator = Generator().manual_seed(number)
    return Batch(
        latents_BCTHW=torch.randn(1, *LATENT_SHAPE, generator=generator).bfloat16(),
        text_BLD=torch.randn(1, *TEXT_SHAPE, generator=generator).bfloat16(),
        mask_BL=torch.ones(1, TEXT_SHAPE[0], dtype=torch.long),
        num_cond_latents=0,
        clip_ids=(f"clip {number}",),
    )


def bare_loop(model: LongCatVideoTransformer) -> Callable[[], None]:
    """The least that a step must do."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    batch = clip(0)
    noised = torch.randn(1, *LATENT_SHAPE)
    target = torch.randn(1, *LATENT_SHAPE)
    timestep = torch.full((1, LATENT_SHAPE[1]), 500.0)

    def step() -> None:
        model.train()
        with autocast():
            prediction: Tensor = model(noised, timestep, batch.text_BLD, batch.mask_BL, num_cond_latents=0)
            loss = (prediction - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(pairs: int, folder: Path) -> dict[str, Any]:
    bare_step = bare_loop(transformer())
    bare, ours = Times(), Times()

    def groups() -> Iterator[Group]:
        batch = clip(1)
        for _ in range(pairs + WARMUP):
            begun = clocks()
            bare_step()
            bare.note(begun)
            begun = clocks()
            yield Group((batch,))
            ours.note(begun)

    model = transformer()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(OptimizerSettings(learning_rate=RATE), parameters, is_up=lambda _: False)
    parts = LoopParts(
        model=model,
        optimizer=optimizer,
        schedule=AppliedSchedule(Schedule("constant"), optimizer),
        accelerator=Accelerator(cpu=True),
        draw_sigma=SigmaDensity().sample,
        compute=autocast,
    )
    with EventLog(folder / "events.jsonl") as events:
        hooks = LoopHooks(
            save=lambda _: None,
            validate=lambda _: None,
            on_step=lambda metrics: events.write("step", **asdict(metrics)),
            on_event=lambda name, fields: events.write(name, **fields),
        )
        settings = LoopSettings(max_steps=10**9, seed=42, save_every=10**9)
        run_loop(parts, groups(), settings=settings, hooks=hooks)
    return {
        "steps_of_each": pairs,
        "ratio_of_processor_time": compared(ours.processor[WARMUP:], bare.processor[WARMUP:]),
        "ratio_of_wall_time": compared(ours.wall[WARMUP:], bare.wall[WARMUP:]),
        "bare_step_seconds": spread(bare.processor[WARMUP:]),
        "wanted_ratio": 1.03,
    }


def compared(ours: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Of all ratios of neighbours, and of the sums."""
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return {"of_medians": round(statistics.median(ours) / statistics.median(bare), 4), **spread(ratios)}


def spread(values: Sequence[float]) -> dict[str, float]:
    first, middle, third = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "quartile_1": round(first, 4), "quartile_3": round(third, 4)}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40, help="steps of each loop")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loop.json too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.pairs, Path(folder))
    report = {
        "part": "loop",
        "command": " ".join(["python scripts/bench_loop.py", *sys.argv[1:]]),
        "machine": before,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "shape": {"hidden_size": HIDDEN, "depth": DEPTH, "tokens": 1000, "lora_rank": 8, "dtype": "bf16"},
        "results": results,
    }
    print(json.dumps(report, indent=2))
    if options.save:
        write_json_atomically(RESULTS / "loop.json", report)


if __name__ == "__main__":
    main()
