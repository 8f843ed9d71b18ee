"""Measure block-sparse attention against dense and flex attention: forward, backward, the whole module.

    python scripts/bench_attention.py                 on a GPU, in one call of at most ten minutes
    python scripts/bench_attention.py --sweep         on a GPU: launches beside those of the table
    python scripts/bench_attention.py --small         a small grid on the CPU, kernels interpreted: it works

Rows of one shape take turns over three sets of inputs; times are medians of CUDA events. Correctness is
checked in the same process against float64 on fresh inputs. TFLOP/s count the products of the kept pairs of
tokens, 4 per pair and width forward and 2.5 times that backward, whatever is executed; beside them what the
tiles execute. Everything is written to benchmarks/results/attention-<device>-<date>.json after every shape.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    # Before anything imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"

import torch.nn.functional as F
from bench_attention_checks import check_against_float64
from bench_attention_rows import Inputs, Row, make_inputs, rows_of, sparse_kernels

from longcat_tune.files import write_json_atomically
from longcat_tune.model.block_sparse import launch_table
from longcat_tune.model.block_sparse.launch_table import KernelName, Launch
from longcat_tune.model.block_sparse.lists import columns
from longcat_tune.model.block_sparse.partition import SPAN_BASE, Grid
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
INPUT_SETS = 3
WARMUP = 3
SHAPES: dict[str, tuple[Grid, tuple[float, ...]]] = {
    "480x832x93": ((24, 30, 52), (0.9375, 0.875, 0.0)),
    "704x1280x93": ((24, 44, 80), (0.9375,)),
    "480x832x49": ((13, 30, 52), (0.9375,)),
}
FLEX_AT = (24, 30, 52), 0.9375
"""FlexAttention is compiled for every shape anew, more than a minute each."""
SMALL: dict[str, tuple[Grid, tuple[float, ...]]] = {"small": ((4, 5, 8), (0.75,))}
SWEEP: dict[KernelName, list[tuple[int, int, int, int]]] = {
    "forward": [(64, 64, 4, 1), (64, 64, 4, 3), (64, 64, 8, 2), (64, 32, 4, 2), (64, 32, 4, 3)],
    "dq": [(64, 64, 4, 1), (64, 64, 4, 3), (64, 64, 8, 2), (64, 32, 4, 2), (64, 32, 4, 3)],
    "dkdv": [(64, 64, 8, 2), (64, 64, 4, 1), (32, 64, 4, 1), (32, 64, 4, 3), (32, 64, 8, 2), (64, 64, 8, 1)],
}
"""Launches tried beside the table's: rows and keys of a tile, warps, stages."""


@dataclass(frozen=True)
class Clock:
    """Times on this machine, in milliseconds."""

    device: torch.device
    repeats: int

    def once(self, work: Callable[[], object]) -> float:
        """Run it and wait for the device."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - begun)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def in_turns(self, works: dict[str, Callable[[int], object]]) -> dict[str, dict[str, float]]:
        """Median and spread of each, taking turns so that a change of clocks meets all alike."""
        taken: dict[str, list[float]] = {name: [] for name in works}
        warmup = WARMUP if self.device.type == "cuda" else 0
        for turn in range(warmup + self.repeats):
            for name, work in works.items():
                milliseconds = self.once(lambda work=work, turn=turn: work(turn % INPUT_SETS))
                if turn >= warmup:
                    taken[name].append(milliseconds)
        return {
            name: {"ms": statistics.median(times), "fastest": min(times), "slowest": max(times)}
            for name, times in taken.items()
        }


def try_rows(rows: list[Row], inputs: Inputs) -> list[Row]:
    """Those that run here; the others keep their error."""
    for row in rows:
        try:
            out, ends = row.forward(inputs)
            torch.autograd.grad(out.float().sum(), ends)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            row.error = (str(error) or type(error).__name__).strip().splitlines()[0]
    return [row for row in rows if row.error is None]


def backward_of(row: Row, sets: list[Inputs]) -> Callable[[int], object]:
    graphs = []
    for inputs in sets:
        out, ends = row.forward(inputs)
        dout = F.pad(inputs.dout, (0, 0, 0, out.shape[2] - inputs.dout.shape[2]))
        graphs.append((out, ends, dout))

    def run(number: int) -> object:
        out, ends, dout = graphs[number]
        return torch.autograd.grad(out, ends, dout, retain_graph=True)

    return run


def counts(inputs: Inputs) -> dict[str, float]:
    """TFLOP of one forward pass: of the kept pairs of tokens, of the executed tiles, of all pairs."""
    heads, head_dim = inputs.q.shape[1], inputs.q.shape[-1]
    rows = inputs.lists.pointers.diff().long()
    of_query = inputs.cut.lengths().repeat(heads).repeat_interleave(rows)
    pairs = (of_query * (inputs.lists.spans_E.long() % SPAN_BASE)).sum().item()
    tiles = inputs.lists.spans_E.numel() * inputs.cut.block_tokens**2
    everything = heads * inputs.cut.num_tokens**2
    return {
        name: 4e-12 * head_dim * number
        for name, number in {"kept": pairs, "executed": tiles, "dense": everything}.items()
    }


def measure(rows: list[Row], sets: list[Inputs], clock: Clock) -> dict[str, Any]:
    """Forward and backward of every row, and the parts of the sparse module."""
    flops = counts(sets[0])
    with torch.no_grad():
        forward = clock.in_turns({row.name: lambda n, row=row: row.forward(sets[n]) for row in rows})
    backward = clock.in_turns({row.name: backward_of(row, sets) for row in rows})
    table = {}
    for row in rows:
        done = flops["dense"] if row.dense else flops["kept"]
        ahead, back = forward[row.name], backward[row.name]
        table[row.name] = {
            "forward": ahead | {"tflops": 1e3 * done / ahead["ms"]},
            "backward": back | {"tflops": 2.5e3 * done / back["ms"]},
            "total_ms": ahead["ms"] + back["ms"],
        }
    best = min(table[row.name]["total_ms"] for row in rows if row.dense)
    for line in table.values():
        line["times_best_dense"] = best / line["total_ms"]
    return {"tflop_forward": flops, "rows": table}


def parts(sets: list[Inputs], rule: SelectionRule, clock: Clock) -> dict[str, dict[str, float]]:
    """What the sparse module spends outside its kernels, and what a model call spends once."""
    cut = sets[0].cut
    hidden = sets[0].q.detach().transpose(1, 2).flatten(2)
    back = cut.order_N.argsort()
    works: dict[str, Callable[[int], object]] = {
        "selection and lists": lambda n: select_lists(sets[n].q, sets[n].k, cut, cut, rule),
        "lists turned around": lambda n: list(columns(sets[n].lists, cut, cut)),
        "order of tokens, once per model call": lambda _: hidden.index_select(1, cut.order_N),
        "order back, once per model call": lambda _: hidden.index_select(1, back),
    }
    with torch.no_grad():
        return clock.in_turns(works)


def peak_memory(row: Row, inputs: Inputs) -> float:
    """GiB beyond the inputs, forward and backward."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, ends = row.forward(inputs)
    torch.autograd.grad(out.float().sum(), ends)
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def sweep(sets: list[Inputs], clock: Clock) -> dict[str, dict[str, Any]]:
    """Other launches of each kernel; the table's own comes first. Backward times are of both its kernels."""
    table, found = launch_table.HOPPER_HALF, {}
    tried = [(kernel, Launch(*numbers)) for kernel, others in SWEEP.items() for numbers in others]
    for kernel, launch in [*table.items(), *tried]:
        own, table[kernel] = table[kernel], launch
        size, pipeline = (
            f"{launch.block_m}x{launch.block_n}",
            f"{launch.num_warps} warps {launch.num_stages} stages",
        )
        row = Row(f"{kernel} {size} {pipeline}", sparse_kernels)
        if not try_rows([row], sets[0]):
            found[row.name] = {"error": row.error}
        elif kernel == "forward":
            with torch.no_grad():
                found |= clock.in_turns({row.name: lambda n, row=row: row.forward(sets[n])})
        else:
            found |= clock.in_turns({row.name: backward_of(row, sets)})
        table[kernel] = own
        print(f"  {row.name}: {found[row.name]}", flush=True)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    import triton

    about = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "command": " ".join(sys.argv),
    }
    if device.type != "cuda":
        return about | {"device": "cpu", "interpreted": True}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    driver, clock, limit = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(
        ", "
    )[:3]
    return about | {
        "device": torch.cuda.get_device_name(device),
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver,
        "clock": clock,
        "clock_limit": limit.strip(),
    }


def show(title: str, result: dict[str, Any]) -> None:
    print(f"\n{title}: {result['tflop_forward']['kept']:.3f} TFLOP forward", flush=True)
    for name, line in result["rows"].items():
        ahead, back = line["forward"], line["backward"]
        print(
            f"  {name:16} forward {ahead['ms']:8.3f} ms {ahead['tflops']:5.0f} TFLOP/s  "
            f"backward {back['ms']:8.3f} ms {back['tflops']:5.0f} TFLOP/s  "
            f"total {line['total_ms']:8.3f} ms  {line['times_best_dense']:5.2f} x dense"
        )
    for name, error in result["errors"].items():
        print(f"  {name:16} {error}")
    for name, part in result["parts"].items():
        print(f"  {name:38} {part['ms']:8.3f} ms")
    for name, gib in result.get("peak_gib", {}).items():
        print(f"  {name:16} peak {gib:.2f} GiB beyond the inputs")


def measure_shape(
    grid: Grid, sparsity: float, clock: Clock, *, heads: tuple[int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All rows of one shape, or the launches of a sweep; heads is their number and width."""
    rule = SelectionRule(sparsity)
    sets = [make_inputs(grid, sparsity, heads=heads, device=clock.device, seed=n) for n in range(INPUT_SETS)]
    if arguments.sweep:
        return sweep(sets, clock)
    with_flex = not arguments.no_flex and (grid, sparsity) == FLEX_AT
    rows = rows_of(rule, clock.device, with_flex=with_flex)
    running = try_rows(rows, sets[0])
    result = measure(running, sets, clock)
    result["parts"] = parts(sets, rule, clock)
    result["errors"] = {row.name: row.error for row in rows if row.error}
    if clock.device.type == "cuda":
        result["peak_gib"] = {row.name: peak_memory(row, sets[0]) for row in running}
    show(f"{grid}, sparsity {sparsity}", result)
    return result


def check(device: torch.device, heads: tuple[int, int], *, small: bool) -> dict[str, dict[str, float]]:
    """Errors against float64 on inputs of their own, and with logits nine times as large."""
    found = {}
    for title, scale in (("plain", 1.0), ("large logits", 3.0)):
        grid, sparsity = ((4, 5, 8), 0.75) if small else ((24, 30, 52), 0.9375)
        fresh = make_inputs(grid, sparsity, heads=heads, device=device, seed=97, scale=scale)
        found[title] = check_against_float64(fresh.qkv, fresh.dout, fresh.cut, fresh.lists, large=scale > 1)
        print(f"{title}: " + ", ".join(f"{name} {error:.1e}" for name, error in found[title].items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="a small grid on the CPU")
    parser.add_argument("--sweep", action="store_true", help="try other launches instead of other kernels")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention and its compiling out")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=480, help="begin no shape after this long")
    arguments = parser.parse_args()
    begun = time.monotonic()
    device = torch.device("cpu" if arguments.small else "cuda")
    heads = (2, 32) if arguments.small else (32, 128)
    clock = Clock(device, 1 if arguments.small else arguments.repeats)
    report: dict[str, Any] = {"machine": machine(device), "shapes": {}}
    print(report["machine"], flush=True)
    report["correctness"] = check(device, heads, small=arguments.small)

    name = report["machine"]["device"].replace(" ", "-")
    path = RESULTS / f"attention-{name}-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    shapes = SMALL if arguments.small else SHAPES
    for title, grid, sparsity in [
        (name, grid, kept) for name, (grid, all_of) in shapes.items() for kept in all_of
    ]:
        if time.monotonic() - begun > arguments.seconds:
            print(f"no time left for {title} at {sparsity}")
            continue
        result = measure_shape(grid, sparsity, clock, heads=heads, arguments=arguments)
        report["shapes"][f"{title} {sparsity}"] = result
        if not arguments.small:
            write_json_atomically(path, report)


if __name__ == "__main__":
    main()
