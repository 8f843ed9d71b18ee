"""What a dataset is trained for: which leading part of a clip is given, and that something is left to learn.

Knows no files; whether a start image is at hand is decided in `pairing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import ClipRecord, Task, latent_frames, pixel_frames

START_IMAGE_LATENTS = 1
"""Latent frames that a start image takes; continuation always has more."""


def tasks_of(entry: DatasetEntry) -> tuple[Task, ...]:
    """The tasks of a dataset in the order t2v, i2v, continuation; their shares add up to 1.

    Args:
        entry: task_mix decides; without one is_i2v, then video.continuation_frames, else text-to-video.
    """
    continued = latent_frames(entry.video.continuation_frames or 0)
    if entry.task_mix is None:
        return (Task(START_IMAGE_LATENTS if entry.is_i2v else continued),)
    latents: dict[Literal["t2v", "i2v", "continuation"], int]
    latents = {"t2v": 0, "i2v": START_IMAGE_LATENTS, "continuation": continued}
    shares = {name: entry.task_mix.get(name, 0.0) for name in latents}
    total = sum(shares.values())
    return tuple(Task(latents[name], share / total) for name, share in shares.items() if share)


def takes_start_images(tasks: Sequence[Task]) -> bool:
    """Whether any of the tasks is image-to-video."""
    return any(task.num_cond_latents == START_IMAGE_LATENTS for task in tasks)


def require_something_to_learn(
    record: ClipRecord, num_frames: int, tasks: Sequence[Task], entry: DatasetEntry
) -> None:
    """Refuse clips that one of the tasks takes as given from the first frame to the last.

    Args:
        record: the file.
        num_frames: that are encoded of it.
        tasks: of its dataset.
        entry: says which key asks for the task.

    Raises:
        UnusableFileError: naming the task.
    """
    given = max(given_frames(task) for task in tasks)
    if num_frames > given:
        return
    if given == 1:
        reason = (
            "has one frame, which image-to-video takes as the start image, so that nothing is left to learn"
        )
        key = "set is_i2v to false" if entry.task_mix is None else "take i2v out of task_mix"
    else:
        reason = (
            f"is {num_frames} frames long, all of which continuation takes as given "
            f"(video.continuation_frames {given}), so that nothing is left to learn"
        )
        key = "lower video.continuation_frames"
    if record.kind == "image":
        raise UnusableFileError(record.path, reason, "put images into a text-to-video dataset of their own")
    raise UnusableFileError(record.path, reason, f"take a longer clip or {key}")


def given_frames(task: Task) -> int:
    """How many leading pixel frames of a clip a task gives; 0 for text-to-video."""
    return pixel_frames(task.num_cond_latents)
