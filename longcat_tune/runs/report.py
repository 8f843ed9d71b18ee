"""What a plan says as JSON values: the content of `check --json` and of plan.json.

Tables and lines for people are made from it in `report_text`.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from longcat_tune import __version__
from longcat_tune.config.training import TrainingSection
from longcat_tune.data.epochs import DatasetBatches
from longcat_tune.data.planning import clip_id
from longcat_tune.data.sampler import count_batches
from longcat_tune.data.tasks import given_frames
from longcat_tune.runs.build import CheckpointFolders
from longcat_tune.runs.plan import PlannedDataset, RunPlan
from longcat_tune.runs.steps import launched_processes
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import PlannedClip, Task

VERSIONED = ("torch", "diffusers", "transformers", "peft", "accelerate")


def plan_report(
    plan: RunPlan,
    requests: Sequence[RenderRequest],
    checkpoint: CheckpointFolders | None,
    training: TrainingSection,
) -> dict[str, Any]:
    """Everything a plan decided, as JSON values.

    Args:
        plan: of the run.
        requests: what it renders.
        checkpoint: where the weights are; None while they are only named.
        training: the section; clips become batches and steps by it.
    """
    return {
        "datasets": [
            *(
                _dataset_report(dataset, training, [number in phase.active for phase in plan.phases])
                for number, dataset in enumerate(plan.training)
            ),
            *(_dataset_report(dataset, training, None) for dataset in plan.held_out),
        ],
        "start_images": [
            {
                "id": images.entry.id,
                "found": images.found,
                "used": images.used,
                "refused": len(images.refusals),
                "without_clip": images.found - images.used - len(images.refusals),
            }
            for images in plan.start_images
        ],
        "phases": [
            {
                "first_step": phase.first_step,
                "last_step": phase.last_step,
                "datasets": [plan.training[number].entry.id for number in phase.active],
                "steps_per_epoch": phase.steps_per_epoch,
            }
            for phase in plan.phases
        ],
        "steps_per_epoch": plan.steps_per_epoch,
        "max_steps": plan.max_steps,
        "checkpoint": checkpoint and {name: str(folder) for name, folder in asdict(checkpoint).items()},
        "renders": [_render_report(request) for request in requests],
        "notices": [
            {"dataset": notice.dataset_id, "fact": notice.fact, "remedy": notice.remedy}
            for notice in plan.notices
        ],
        "versions": {"longcat-tune": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def clip_rows(plan: RunPlan) -> list[dict[str, Any]]:
    """Every clip of a plan with what becomes of it; a file that is cut into several has a row for each."""
    return [_clip_row(clip) for dataset in plan.datasets for clip in dataset.plan.clips]


def _clip_row(clip: PlannedClip) -> dict[str, Any]:
    record, start = clip.record, clip.record.conditioning
    return {
        "dataset": record.dataset_id,
        "clip": clip_id(clip),
        "file": str(record.path),
        "kind": record.kind,
        "width": record.width,
        "height": record.height,
        "fps": round(record.fps, 3),
        "seconds": round(record.seconds, 3),
        "bucket": clip.bucket.name,
        "frames": clip.bucket.num_frames,
        "first_frames": list(clip.windows),
        "captions": list(record.captions),
        "start_image": None if start is None else str(start.path),
    }


def _dataset_report(
    dataset: PlannedDataset, training: TrainingSection, active: Sequence[bool] | None
) -> dict[str, Any]:
    """What became of a dataset's files.

    Args:
        dataset: with its plan.
        training: the section.
        active: whether it is used in each of the phases; None when it is not trained on.
    """
    entry, plan = dataset.entry, dataset.plan
    return {
        "id": entry.id,
        "trained": active is not None,
        "found": plan.found,
        "used": plan.used,
        "refused": len(plan.refusals),
        "left_out": plan.left_out,
        "clips": len(plan.clips),
        "tasks": [_task_report(task, dataset) for task in (plan.clips[0].tasks if plan.clips else ())],
        "keeps_base": dataset.keeps_base,
        "probability": entry.probability,
        "start_step": entry.start_step,
        "end_step": entry.end_step,
        "source_fps": {f"{rate:g}": count for rate, count in sorted(plan.source_rates.items())},
        "source_sizes": {f"{w}x{h}": count for (w, h), count in sorted(plan.source_sizes.items())},
        "buckets": _bucket_rows(dataset, training, active),
    }


def _bucket_rows(
    dataset: PlannedDataset, training: TrainingSection, active: Sequence[bool] | None
) -> list[dict[str, Any]]:
    clips = Counter(clip.bucket for clip in dataset.plan.clips)
    whole = count_batches(dataset.bucket_uses.values(), training.train_batch_size)
    share = DatasetBatches(whole, dataset.entry.probability).per_epoch / whole if whole else 1.0
    rows = []
    for bucket, uses in sorted(dataset.bucket_uses.items()):
        batches = count_batches([uses], training.train_batch_size)
        at_once = training.gradient_accumulation_steps * launched_processes()
        steps = share * batches / at_once
        rows.append(
            {
                "bucket": bucket.name,
                "clips": clips[bucket],
                "uses_per_epoch": 0 if active is None else _shared(uses, share),
                "frames": bucket.num_frames,
                "tokens": bucket.num_tokens,
                "batches": 0 if active is None else _shared(batches, share),
                "steps_per_epoch": [round(steps, 2) if one else 0.0 for one in active or ()],
            }
        )
    return rows


def _shared(count: int, share: float) -> float:
    """Of so many in a whole pass, how many an epoch has on average."""
    return count if share == 1 else round(count * share, 2)


def _task_report(task: Task, dataset: PlannedDataset) -> dict[str, Any]:
    """What is given of a clip, from where, and how often."""
    given = given_frames(task)
    if given == 0:
        return {"task": "text-to-video", "given_frames": 0, "share": task.share}
    if given > 1:
        return {"task": "continuation", "given_frames": given, "share": task.share}
    source = ", ".join(dataset.entry.conditioning_data) or "each clip's own first frame"
    return {"task": "image-to-video", "given_frames": 1, "share": task.share, "start_images": source}


def _render_report(request: RenderRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "prompt": request.prompt,
        "size": request.size.name,
        "steps": request.num_steps,
        "guidance": request.guidance,
        "seed": request.seed,
        "start_image": None if request.start_image is None else str(request.start_image),
        "start_frames": 0 if request.start_image is None else request.num_start_frames,
        "segments": request.num_segments,
    }
