"""Measure what each format of the frozen base costs and saves; gives one JSON object with its machine.

    OMP_NUM_THREADS=1 python scripts/bench_quantization.py --save
    python scripts/bench_quantization.py --table      # the table of docs/memory.md, from what was saved

For each format: the bytes of the released model's linear layers; the error of the miniature's weights and of
normal numbers in rows as wide as the released model's; the error of the miniature's answers, computed in
float32 and in bf16, against its own weights in float32; and the loss on held-out clips of one concept before
and after a LoRA was trained on others, with the same seeds and steps for all formats. Formats whose library
is not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longcat_tune.config.load import load_run_config
from longcat_tune.config.model import ModelSection
from longcat_tune.data.demo import Scene
from longcat_tune.data.demo_drawing import render
from longcat_tune.data.video import write_mp4
from longcat_tune.files import write_json_atomically
from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.quantize import KINDS
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.weights import load_transformer, resolve_checkpoint
from longcat_tune.runs.precision import base_weights
from longcat_tune.runs.train import train

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NAME = "quantization.json"
PACKAGES = ("torch", "optimum-quanto", "torchao")
CPU = torch.device("cpu")
SAMPLE_ROWS = 64
SIGMAS = (0.1, 0.5, 0.9, 0.99)
RUN = {
    "model_flavour": "tiny",
    "resolution": 64,
    "framerate": 15,
    "learning_rate": 3e-3,
    "lora_target": "all-linear",
    "lora_rank": 8,
    "gradient_checkpointing": False,
    "validation_step_interval": 0,
    "validation_on_startup": False,
}


def installed(precision: str) -> bool:
    return precision == "bf16" or find_spec(KINDS[precision].library.partition(".")[0]) is not None


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers of the blocks that a quantized format replaces."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if name.startswith("blocks.")
        and isinstance(layer, nn.Linear)
        and not isinstance(layer, Float32Linear)
    }


def tiny(precision: str, *, dtype: torch.dtype) -> LongCatVideoTransformer:
    """The miniature, with everything that is not quantized in a dtype."""
    weights = base_weights(ModelSection(base_model_precision=precision), CPU)
    folder = resolve_checkpoint(None, flavour="tiny") / "dit"
    return load_transformer(
        folder,
        dtype=dtype,
        device=CPU,
        prepare_block=lambda _, block: weights.freeze(block) if weights.quantize else None,
    )


def stored_bytes(layer: nn.Linear) -> int:
    tensors = layer.stored() if isinstance(layer, FrozenLinear) else {"weight": layer.weight}
    return sum(tensor.nbytes for tensor in tensors.values())


def full_size_bytes(precision: str) -> tuple[int, int]:
    """Bytes and numbers of the released model's layers, from a few rows of each shape."""
    weights = base_weights(ModelSection(base_model_precision=precision), CPU)
    with torch.device("meta"):
        released = LongCatVideoTransformer()
    rows = {}
    shapes = [(layer.out_features, layer.in_features) for layer in quantized_layers(released).values()]
    for width in {width for _, width in shapes}:
        sample = nn.Linear(width, SAMPLE_ROWS, bias=False, dtype=weights.dtype)
        rows[width] = stored_bytes(weights.quantize(sample) if weights.quantize else sample) / SAMPLE_ROWS
    return int(sum(out * rows[width] for out, width in shapes)), sum(out * width for out, width in shapes)


def relative(error: Tensor, of: Tensor) -> float:
    return (error.norm() / of.norm()).item()


def weight_errors(
    precision: str, model: LongCatVideoTransformer, exact: LongCatVideoTransformer
) -> dict[str, float]:
    """Of the miniature, all layers together, and of normal numbers 4096 wide."""
    wanted, got = quantized_layers(exact), quantized_layers(model)
    whole = torch.cat([layer.weight.flatten() for layer in wanted.values()])
    made = torch.cat([dense(got[name]).float().flatten() for name in wanted])
    weights = base_weights(ModelSection(base_model_precision=precision), CPU)
    normal = nn.Linear(4096, 512, bias=False)
    nn.init.normal_(normal.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    held = normal.to(weights.dtype)
    layer = weights.quantize(held) if weights.quantize else held
    nn.init.normal_(reference := torch.empty(512, 4096), std=0.02, generator=torch.Generator().manual_seed(0))
    return {
        "tiny": relative(made - whole, whole),
        "normal_4096": relative(dense(layer).float() - reference, reference),
    }


def dense(layer: nn.Linear) -> Tensor:
    return (layer.live_weight() if isinstance(layer, FrozenLinear) else layer.weight).detach()


@torch.no_grad()
def answers(model: LongCatVideoTransformer) -> Tensor:
    """Velocities for the same noise, as a training step computes them."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(SIGMAS), 16, 3, 8, 8, generator=generator)
    text = torch.randn(len(SIGMAS), 32, 64, generator=generator)
    given = model(latents, 1000 * torch.tensor(SIGMAS), text)
    assert isinstance(given, Tensor)
    return given


def concept(folder: Path, numbers: range) -> str:
    """Clips of a purple triangle that moves right on yellow, each at a place of its own."""
    folder.mkdir(parents=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        place = {"x": rng.uniform(0.3, 0.7), "y": rng.uniform(0, 1), "size": rng.uniform(0.14, 0.26)}
        scene = Scene("triangle", "purple", "right", "yellow", **place, angle=rng.uniform(-0.15, 0.15))
        write_mp4(folder / f"clip-{number}.mp4", render(scene, 64, 64, 9), 15.0)
        (folder / f"clip-{number}.txt").write_text(scene.caption)
    return str(folder)


def trained(
    folder: Path, precision: str, data: list[dict[str, Any]], *, steps: int, seed: int
) -> tuple[float, float]:
    """The loss on the held-out clips before and after."""
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(data))
    own = {
        "data_backend_config": str(folder / "data.json"),
        "output_dir": str(folder / "out"),
        "max_train_steps": steps,
        "seed": seed,
        "base_model_precision": precision,
    }
    (folder / "config.json").write_text(json.dumps(RUN | own))
    train(load_run_config(folder / "config.json", {}), config_dir=folder)
    events = map(json.loads, (folder / "out" / "events.jsonl").read_text().splitlines())
    losses = [event["loss"] for event in events if event["event"] == "evaluation"]
    return losses[0], losses[-1]


def measure(folder: Path, precisions: list[str], *, steps: int, seeds: int) -> dict[str, Any]:
    entry = {"dataset_type": "video", "video": {"num_frames": 9}}
    data = [
        {"id": "clips", "instance_data_dir": concept(folder / "clips", range(16))} | entry,
        {"id": "val", "instance_data_dir": concept(folder / "val", range(16, 20))}
        | entry
        | {"dataset_type": "eval"},
    ]
    exact, results = tiny("bf16", dtype=torch.float32), {}
    truth = answers(exact)
    for precision in precisions:
        model, in_bf16 = (tiny(precision, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        size, count = full_size_bytes(precision)
        runs = [
            trained(folder / f"{precision}-{seed}", precision, data, steps=steps, seed=seed)
            for seed in range(seeds)
        ]
        results[precision] = {
            "linear_layers_gb": round(size / 1e9, 2),
            "bits_per_weight": round(8 * size / count, 3),
            "weight_error": {name: round(e, 5) for name, e in weight_errors(precision, model, exact).items()},
            "output_error": round(relative(answers(model) - truth, truth), 5),
            "output_error_with_bf16_activations": round(relative(answers(in_bf16) - truth, truth), 5),
            "eval_loss_before": [round(before, 5) for before, _ in runs],
            "eval_loss_after": [round(after, 5) for _, after in runs],
        }
    reference = results["bf16"]["eval_loss_after"]
    for one in results.values():
        ratios = [ours / other for ours, other in zip(one["eval_loss_after"], reference, strict=True)]
        one["eval_loss_against_bf16"] = [round(ratio, 4) for ratio in ratios]
    return results


def table(results: dict[str, Any]) -> str:
    """The saved figures as docs/memory.md shows them."""
    head = "format | 48 blocks' linear layers | bits per weight | error of weights | error of answers"
    rows = [
        f"| {head} | held-out loss, 200 steps | against bf16 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in results.items():
        losses, ratios = one["eval_loss_after"], one["eval_loss_against_bf16"]
        cells = [
            f"`{name}`",
            f"{one['linear_layers_gb']} GB",
            f"{one['bits_per_weight']:g}",
            f"{100 * one['weight_error']['normal_4096']:.2f} %",
            f"{100 * one['output_error']:.2f} %",
            f"{sum(losses) / len(losses):.4f}",
            f"{100 * (min(ratios) - 1):+.2f} to {100 * (max(ratios) - 1):+.2f} %",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each format")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/quantization.json too")
    parser.add_argument("--table", action="store_true", help="only show what was saved")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads((RESULTS / NAME).read_text())["results"]))
        return
    torch.set_num_threads(1)
    precisions = [name for name in ("bf16", *KINDS) if installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), precisions, steps=options.steps, seeds=options.seeds)
    report = {
        "part": "quantization",
        "command": " ".join(["python scripts/bench_quantization.py", *sys.argv[1:]]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions(),
        "run": RUN | {"steps": options.steps},
        "results": results,
    }
    print(json.dumps(report, indent=2))
    if options.save:
        write_json_atomically(RESULTS / NAME, report)


if __name__ == "__main__":
    main()
