"""What a plan says, for people and for machines: the tables of `check` and the content of plan.json."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from longcat_tune import __version__
from longcat_tune.config.values import FrameSize
from longcat_tune.runs.build import CheckpointFolders
from longcat_tune.runs.plan import PlannedDataset, RunPlan
from longcat_tune.sampling.requests import RenderRequest

VERSIONED = ("torch", "diffusers", "transformers", "peft", "accelerate")


def plan_report(
    plan: RunPlan, requests: Sequence[RenderRequest], checkpoint: CheckpointFolders | None
) -> dict[str, Any]:
    """Everything a plan decided, as JSON values.

    Args:
        plan: of the run.
        requests: what it renders.
        checkpoint: where the weights are; None while they are only named.
    """
    return {
        "datasets": [
            *(_dataset_report(dataset, trained=True) for dataset in plan.training),
            *(_dataset_report(dataset, trained=False) for dataset in plan.held_out),
        ],
        "steps_per_epoch": plan.steps_per_epoch,
        "max_steps": plan.max_steps,
        "checkpoint": checkpoint and {name: str(folder) for name, folder in asdict(checkpoint).items()},
        "renders": [
            {
                "name": request.name,
                "prompt": request.prompt,
                "size": request.size.name,
                "steps": request.num_steps,
                "guidance": request.guidance,
                "seed": request.seed,
                "start_image": None if request.start_image is None else str(request.start_image),
            }
            for request in requests
        ],
        "versions": {"longcat-tune": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _dataset_report(dataset: PlannedDataset, *, trained: bool) -> dict[str, Any]:
    plan = dataset.plan
    clips = Counter(clip.bucket for clip in plan.clips)
    return {
        "id": dataset.entry.id,
        "trained": trained,
        "found": plan.found,
        "used": len(plan.clips),
        "refused": len(plan.refusals),
        "source_fps": {f"{rate:g}": count for rate, count in sorted(plan.source_rates.items())},
        "source_sizes": {f"{w}x{h}": count for (w, h), count in sorted(plan.source_sizes.items())},
        "buckets": [
            {
                "bucket": bucket.name,
                "clips": clips[bucket],
                "uses_per_epoch": uses,
                "frames": bucket.num_frames,
                "tokens": bucket.num_tokens,
            }
            for bucket, uses in sorted(dataset.bucket_uses.items())
        ],
        "refusals": [
            {"path": str(refusal.path), "reason": refusal.reason, "remedy": refusal.remedy}
            for refusal in plan.refusals
        ],
    }


def bucket_table(report: dict[str, Any]) -> Table:
    """One row per dataset and bucket."""
    table = Table("dataset", "bucket", "clips", "uses per epoch", "frames", "tokens", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for dataset in report["datasets"]:
        label = dataset["id"] if dataset["trained"] else f"{dataset['id']} (held out)"
        for row in dataset["buckets"]:
            numbers = (row["clips"], row["uses_per_epoch"], row["frames"], row["tokens"])
            table.add_row(label, row["bucket"], *(f"{number:,}" for number in numbers))
    return table


def render_lines(requests: Sequence[RenderRequest], *, framerate: float) -> list[str]:
    """What will be rendered; says which way up, because `480x832` is read both ways elsewhere."""
    lines = []
    for request in requests:
        size = FrameSize(request.size.width, request.size.height).described
        frames = request.size.num_frames
        lines.append(
            f"render {request.name}: {size}, {frames} frames ({frames / framerate:.1f} s), "
            f"{request.num_steps} steps, guidance {request.guidance:g}"
        )
    return lines


def accounting_lines(report: dict[str, Any]) -> list[str]:
    """How many files were found, used and refused, and how long an epoch is."""
    lines = []
    for dataset in report["datasets"]:
        name, found, used, refused = (dataset[key] for key in ("id", "found", "used", "refused"))
        lines.append(f"{name}: {found} found = {used} used + {refused} refused")
        for what, key in (("frames per second", "source_fps"), ("sizes", "source_sizes")):
            if len(dataset[key]) > 1:
                counts = ", ".join(f"{value} ({count})" for value, count in dataset[key].items())
                lines.append(f"{name}: clips of several {what}: {counts}")
    steps = f"{report['steps_per_epoch']} steps per epoch"
    if report["max_steps"] is not None:
        steps += f", {report['max_steps']} steps in all"
    return [*lines, steps]
