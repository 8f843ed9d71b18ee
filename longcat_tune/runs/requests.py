"""What a run renders: requests from the validation keys, from held-out clips, or from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from longcat_tune.config.validation import ValidationSection
from longcat_tune.data.planning import DatasetPlan
from longcat_tune.data.tasks import takes_start_images
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import Bucket

NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Subject:
    """What a render shows, before sizes and steps are set.

    Attributes:
        name: for the file.
        prompt: what to show.
        start_image: an image or clip that holds the first frame, if it is given.
        start_frame: where in a clip it is, counted at the run's framerate.
    """

    name: str
    prompt: str
    start_image: Path | None = None
    start_frame: int = 0


def plan_requests(validation: ValidationSection, source: DatasetPlan | None) -> tuple[RenderRequest, ...]:
    """Turn the validation keys into requests; none when nothing is asked for.

    Args:
        validation: the section.
        source: the clips of eval_dataset_id, at least one; None when it cannot be used.
    """
    subjects: list[Subject] = []
    if validation.validation_prompt is not None:
        subjects.append(Subject("prompt", validation.validation_prompt))
    if validation.validation_using_datasets and source is not None:
        subjects += _held_out_subjects(source, validation.num_eval_images)
    return _sized(subjects, validation)


def command_requests(
    validation: ValidationSection, *, prompts: Sequence[str], image: Path | None
) -> tuple[RenderRequest, ...]:
    """Turn prompts of the command line into requests, all from the same start image if one is given."""
    return _sized([Subject(prompt, prompt, image) for prompt in prompts], validation)


def _held_out_subjects(held_out: DatasetPlan, count: int) -> list[Subject]:
    subjects = []
    # Of a file that is cut into several clips the first stands for all.
    firsts = (clip for clip in held_out.clips if clip.number in {None, 1})
    for clip in islice(firsts, count):
        record, name = clip.record, Path(clip.record.name).stem
        if not takes_start_images(clip.tasks):
            subjects.append(Subject(name, record.captions[0]))
        elif record.conditioning is not None:
            subjects.append(Subject(name, record.captions[0], record.conditioning.path))
        else:
            subjects.append(Subject(name, record.captions[0], record.path, clip.windows[0]))
    return subjects


def _sized(subjects: Sequence[Subject], validation: ValidationSection) -> tuple[RenderRequest, ...]:
    taken: dict[str, int] = {}
    requests = []
    for subject in subjects:
        name = re.sub(r"[^\w.-]+", "-", subject.name).strip("-")[:NAME_LENGTH] or "clip"
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}-{taken[name]}"
        requests += [
            RenderRequest(
                name=unique,
                prompt=subject.prompt,
                negative_prompt=validation.validation_negative_prompt,
                size=Bucket(width, height, validation.validation_num_video_frames),
                num_steps=validation.validation_num_inference_steps,
                guidance=validation.validation_guidance,
                seed=validation.validation_seed,
                start_image=subject.start_image,
                start_frame=subject.start_frame,
            )
            for width, height in validation.validation_resolution
        ]
    return tuple(requests)
