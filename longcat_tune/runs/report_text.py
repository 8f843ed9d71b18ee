"""A report for people: the bucket table, and the lines about files, tasks, steps, renders and notices.

Shows what a report says and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from longcat_tune.config.values import FrameSize
from longcat_tune.runs.problems import one_line
from longcat_tune.sampling.requests import RenderRequest


def bucket_table(report: dict[str, Any]) -> Table:
    """One row per dataset and bucket; one column of steps per phase."""
    table = Table("dataset", "bucket", "clips", "uses per epoch", "frames", "tokens", "batches", box=None)
    phases = report["phases"]
    for phase in phases:
        table.add_column("steps per epoch" if len(phases) == 1 else f"per epoch {_phase_name(phase)}")
    for column in table.columns[2:]:
        column.justify = "right"
    for dataset in report["datasets"]:
        label = dataset["id"] if dataset["trained"] else f"{dataset['id']} (held out)"
        for row in dataset["buckets"]:
            keys = ("clips", "uses_per_epoch", "frames", "tokens", "batches")
            table.add_row(
                label,
                row["bucket"],
                *(f"{row[key]:,}" for key in keys),
                *(f"{steps:,g}" for steps in row["steps_per_epoch"]),
            )
    return table


def clip_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What becomes of each clip: bucket, frames, its captions, and where its start image is."""
    lines = []
    for row in rows:
        frames = "1 frame" if row["frames"] == 1 else f"{row['frames']} frames"
        starts = f", starts from {row['start_image']}" if row["start_image"] is not None else ""
        captions = " | ".join(row["captions"])
        lines.append(one_line(f"{row['clip']}: {row['bucket']}, {frames}{starts}: {captions}"))
    return lines


def dataset_lines(report: dict[str, Any]) -> list[str]:
    """How many files of each dataset were found, used, refused and left out; tasks that are not plain t2v."""
    lines = []
    for dataset in report["datasets"]:
        as_clips = f" (as {dataset['clips']} clips)" if dataset["clips"] != dataset["used"] else ""
        parts = [f"{dataset['used']} used{as_clips}", f"{dataset['refused']} refused"]
        parts += [f"{dataset['left_out']} left out"] if dataset["left_out"] else []
        lines.append(f"{dataset['id']}: {dataset['found']} found = {' + '.join(parts)}")
        if any(task["given_frames"] for task in dataset["tasks"]):
            tasks = ", ".join(f"{_task(task)} {task['share']:.0%}" for task in dataset["tasks"])
            lines.append(f"{dataset['id']}: tasks: {tasks}")
        if dataset["keeps_base"]:
            lines.append(f"{dataset['id']}: regularisation data: the model's own predictions are the targets")
    lines += [
        f"{images['id']}: {images['found']} found = {images['used']} used as start images + "
        f"{images['refused']} refused + {images['without_clip']} without a clip"
        for images in report["start_images"]
    ]
    return lines


def step_lines(report: dict[str, Any]) -> list[str]:
    """How long an epoch is, in each phase, and how long the run is."""
    phases = report["phases"]
    if len(phases) <= 1:
        epochs = [f"{report['steps_per_epoch']} steps per epoch"]
    else:
        epochs = [
            f"{_phase_name(phase)}: {phase['steps_per_epoch']} steps per epoch of "
            + ", ".join(phase["datasets"])
            for phase in phases
        ]
    if report["max_steps"] is not None:
        epochs[-1] += f", {report['max_steps']} steps in all"
    return epochs


def render_lines(requests: Sequence[RenderRequest], *, framerate: float) -> list[str]:
    """What will be rendered; says which way up, because `480x832` is read both ways elsewhere."""
    lines = []
    for request in requests:
        size = FrameSize(request.size.width, request.size.height).described
        frames = request.num_frames
        how = ""
        if request.start_image is not None:
            given = request.num_start_frames
            how = f", from {f'{given} frames of ' if given > 1 else ''}{request.start_image.name}"
        if request.num_segments > 1:
            how += f", {request.num_segments} segments"
        lines.append(
            f"render {request.name}: {size}, {frames} frames ({frames / framerate:.1f} s), "
            f"{request.num_steps} steps, guidance {request.guidance:g}{how}"
        )
    return lines


def notice_lines(report: dict[str, Any]) -> list[str]:
    """What is allowed and should be known, each with what to do if it is not meant."""
    return [
        one_line(f"notice {notice['dataset']}: {notice['fact']}; {notice['remedy']}")
        for notice in report["notices"]
    ]


def _phase_name(phase: dict[str, Any]) -> str:
    if phase["last_step"] is None:
        return f"from step {phase['first_step']}"
    return f"steps {phase['first_step']} to {phase['last_step']}"


def _task(task: dict[str, Any]) -> str:
    match task["task"]:
        case "image-to-video":
            return f"image-to-video from {task['start_images']}"
        case "continuation":
            return f"continuation of {task['given_frames']} frames"
        case name:
            return str(name)
