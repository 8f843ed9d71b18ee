"""Measure training steps of the full model, random weights: memory, time, and what streaming costs of it.

    python scripts/bench_step.py            on a GPU, in one call of at most ten minutes
    python scripts/bench_step.py --small    the same with a small model on the CPU, to see that it works

Each row is a shape, a precision and a place for weights and activations; the fully resident rows come first
and the others are compared with them. A row that fails keeps its error and the others go on; a row for which
there is no time left says so. Predictions of the memory plan stand beside what was measured. The table is
printed, and everything is written to benchmarks/results/<device>-<date>.json after every row.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from bench_rows import BUCKETS, HEADS, STEPS, Row, line, padded, rows_of
from random_base import RandomBase, random_base
from torch import Generator, Tensor

from longcat_tune.errors import UserError
from longcat_tune.files import write_json_atomically
from longcat_tune.flow.density import SigmaDensity
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_time import CARDS, StepCost, rates_of, step_cost
from longcat_tune.memory.budget_training import AdapterSize, BatchSize, Training, training_budget
from longcat_tune.training.optimizers import OptimizerSettings, build_optimizer
from longcat_tune.training.step import training_step
from longcat_tune.types import TEXT_TOKENS, Batch, Bucket

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PACKAGES = ("torch", "peft", "optimum-quanto", "triton")
STATUS = Path("/proc/self/status")
RANK = 16
WARMUP = 1
STATE_BYTES = 8.0
"""Of AdamW, per parameter."""
SLACK = 1.25
"""A row is begun if what is left of the time is this much more than it should take."""
BUILDING = 25.0
"""Seconds that building the full model takes, about."""

SMALL = ModelShape(hidden_size=512, depth=8, num_heads=4, ffn_size=1536, caption_channels=256)


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    shape: ModelShape
    device: torch.device
    attention: str
    deadline: float
    save: Callable[[list[Row]], None]

    def run(self, rows: list[Row]) -> None:
        """Measure all rows, one after the other."""
        base: RandomBase | str = "nothing is built yet"
        built: tuple[str, bool] | None = None
        for row in rows:
            kind = (row.precision, row.resident)
            if not self.time_for(row, building=built != kind):
                row.error = "no time left"
            else:
                if built != kind:
                    base = "gone, before the next one is built"
                    free(self.device)
                    base, built = self.build(row), kind
                if isinstance(base, str):
                    row.error = base
                else:
                    self.measure(base, row)
            say(line(row, rows))
            self.save(rows)

    def build(self, row: Row) -> RandomBase | str:
        """Make the model of a row and of those like it; or say why that fails."""
        began = time.perf_counter()
        try:
            base = random_base(
                self.shape,
                row.precision,
                row.placement,
                device=self.device,
                rank=RANK,
                attention=self.attention,
            )
        except (UserError, RuntimeError, ImportError, OSError, ValueError) as error:
            return f"building: {one_line(error)}"
        seconds = time.perf_counter() - began
        say(f"built {row.precision}, {row.mode}, in {seconds:.0f} s; attention: {base.attention.description}")
        return base

    def measure(self, base: RandomBase, row: Row) -> None:
        """Fill in a row's numbers, or its error."""
        self.predict(base.adapter_parameters, row)
        try:
            row.measured = measured(base, row, self.device)
        except (RuntimeError, MemoryError) as error:
            row.error = one_line(error)
        if row.measured:
            cost = self.cost(row, base.adapter_parameters)
            median = row.measured["seconds"]
            row.measured["tokens_per_second"] = round(cost.tokens / median, 1)
            row.measured["tflops"] = round(cost.operations / median / 1e12, 1)
        free(self.device)

    def training(self, row: Row, parameters: int) -> Training:
        """A row as the memory plan sees it."""
        adapter = AdapterSize(
            parameters, in_attention=True, in_ffn=False, state_bytes=STATE_BYTES, averaged=False
        )
        bucket = BUCKETS[row.shape]
        frames, height, width = bucket.latent_shape
        values = self.shape.in_channels * frames * height * width
        batch = BatchSize(bucket.name, 1, bucket.num_tokens, values)
        share = 1 / 16 if self.attention == "block_sparse" else 1.0
        return Training(
            self.shape, row.precision, row.placement, adapter, batch, imports_bytes=0, attended_share=share
        )

    def cost(self, row: Row, parameters: int) -> StepCost:
        """What a step of a row computes and moves."""
        return step_cost(self.training(row, parameters))

    def predict(self, parameters: int, row: Row) -> None:
        """Fill in what the memory plan says."""
        budget, cost = training_budget(self.training(row, parameters)), self.cost(row, parameters)
        rates = rates_of(device_name(self.device))
        row.predicted = {
            "device_bytes": budget.peak("device", reserve=False),
            "device_bytes_with_reserve": budget.peak("device"),
            "host_bytes_without_python": budget.peak("host"),
            "moved_bytes": cost.moved,
            "operations": cost.operations,
            "seconds": None if rates is None else round(cost.seconds(rates), 2),
        }

    def time_for(self, row: Row, *, building: bool) -> bool:
        """Whether a row can be measured before the deadline; on a CPU there is none."""
        if self.device.type != "cuda":
            return True
        rates = rates_of(device_name(self.device)) or CARDS["H100"]
        steps = (WARMUP + STEPS[row.shape]) * self.cost(row, 0).seconds(rates)
        needed = SLACK * steps + (BUILDING if building else 0)
        return time.monotonic() + needed < self.deadline


def measured(base: RandomBase, row: Row, device: torch.device) -> dict[str, Any]:
    """Make a few steps and give their numbers."""
    boundaries = base.place(row.placement)
    lanes = [one.lane for one in (base.stream, boundaries) if one is not None]
    step = stepper(base, BUCKETS[row.shape], device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, waits, losses = [], [], []
    for number in range(WARMUP + STEPS[row.shape]):
        for lane in lanes:
            lane.timed = True
            lane.waited_seconds()
        began = time.perf_counter()
        losses.append(step(number))
        elapsed = time.perf_counter() - began
        say(f"  {row.shape} {row.precision} {row.mode}: step {number}, {elapsed:.2f} s")
        if number >= WARMUP:
            seconds.append(elapsed)
            waits.append(sum(lane.waited_seconds() for lane in lanes))
    return {
        "seconds": round(statistics.median(seconds), 4),
        "all_seconds": [round(one, 4) for one in seconds],
        "waiting_share": round(sum(waits) / sum(seconds), 4),
        "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "device_reserved_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        "host_bytes": resident_bytes(),
        "losses": [round(one, 5) for one in losses],
    }


def stepper(base: RandomBase, bucket: Bucket, device: torch.device) -> Callable[[int], float]:
    """A whole optimizer step of one clip, as the loop makes it."""
    model, density = base.model, SigmaDensity()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        # Of a row that broke off.
        parameter.grad = None
    optimizer = build_optimizer(OptimizerSettings(), trained, is_up=lambda _: False)
    generator = Generator().manual_seed(0)
    frames, height, width = bucket.latent_shape
    latents = torch.randn(1, model.in_channels, frames, height, width, generator=generator)
    batch = Batch(
        latents_BCTHW=latents.to(device),
        text_BLD=torch.randn(1, TEXT_TOKENS, model.caption_channels, generator=generator)
        .to(torch.bfloat16)
        .to(device),
        mask_BL=torch.ones(1, TEXT_TOKENS, dtype=torch.long, device=device),
        num_cond_latents=0,
        clip_ids=("random",),
    )
    model.train()

    def step(number: int) -> float:
        own = Generator().manual_seed(number)
        sigma_B = density.sample(1, own).to(device)
        noise: Tensor = torch.randn(latents.shape, generator=own).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = training_step(model, batch, sigma_B=sigma_B, noise_BCTHW=noise).loss_B.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # Waits for the device.
        return loss.item()

    return step


def resident_bytes() -> int:
    """Host memory that this process holds now."""
    found = re.search(r"^VmRSS:\s+(\d+)", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small model on the CPU")
    parser.add_argument("--shapes", default="480p,18k,720p", help="of: " + ", ".join(BUCKETS))
    parser.add_argument("--precisions", default="bf16,int8-quanto", help="of the base")
    parser.add_argument("--attention", default="sdpa", help="as attention_implementation; sdpa is dense")
    parser.add_argument("--seconds", type=float, default=560.0, help="after which no row is begun")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args()
    device = torch.device("cpu" if options.small else "cuda")
    shape = SMALL if options.small else ModelShape()
    shapes = ["small"] if options.small else options.shapes.split(",")
    rows = rows_of(shape, shapes, options.precisions.split(","))
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()) + ("-small" if options.small else "")
    target = options.out / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"

    def save(done: list[Row]) -> None:
        report = {
            "part": "step",
            "command": " ".join(["python scripts/bench_step.py", *sys.argv[1:]]),
            "device": device_name(device),
            "versions": versions(),
            "model": asdict(shape) | {"parameters": shape.parameters, "lora_rank": RANK, "batch": 1},
            "rows": [asdict(row) for row in done if row.measured or row.error],
        }
        write_json_atomically(target, json.loads(json.dumps(report)))

    say(f"{device_name(device)}, {shape.parameters / 1e9:.2f} G parameters, {len(rows)} rows")
    say("  ".join(padded(HEADS)))
    Bench(shape, device, options.attention, time.monotonic() + options.seconds, save).run(rows)
    print("\n".join(["", "  ".join(padded(HEADS)), *(line(row, rows) for row in rows), str(target)]))


if __name__ == "__main__":
    main()
