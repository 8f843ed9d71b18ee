"""What a run renders: requests from the validation keys, libraries, held-out clips or the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

from longcat_tune.config.prompts import PromptEntry, built_in_prompts, load_prompts
from longcat_tune.config.run import RunConfig
from longcat_tune.config.validation import ValidationSection
from longcat_tune.data.planning import DatasetPlan
from longcat_tune.data.tasks import given_frames, takes_start_images
from longcat_tune.data.video import probe
from longcat_tune.data.windows import resampled_frames
from longcat_tune.errors import ConfigError
from longcat_tune.flow.schedule import DISTILLED_GRID
from longcat_tune.runs.paths import existing_path
from longcat_tune.sampling.requests import CONTINUED_FRAMES, RenderRequest
from longcat_tune.types import TEMPORAL_STRIDE, Bucket, PlannedClip

NAME_LENGTH = 40
DISTILLED_STEPS = 16
DISTILLED_GUIDANCE = 1.0
"""What the authors render with after the cfg_step_lora."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a render starts from.

    Attributes:
        path: an image or a clip.
        first: of the given frames, counted at the run's framerate; 0 for an image.
        num_frames: that are given: 1, or the end of a clip that is continued.
    """

    path: Path
    first: int = 0
    num_frames: int = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What a render shows, before the validation keys fill in the rest.

    Attributes:
        name: for the file.
        prompt: what to show.
        start: what is given of it, if anything.
        segments: how often it goes on from its own last frames, the first one included.
        own: what a library's prompt changes of the validation keys.
    """

    name: str
    prompt: str
    start: Start | None = None
    segments: int = 1
    own: PromptEntry = field(default_factory=lambda: PromptEntry(prompt="-"))


def plan_requests(
    config: RunConfig, source: DatasetPlan | None, *, config_dir: Path
) -> tuple[RenderRequest, ...]:
    """Turn the validation keys into requests; none when nothing is asked for.

    Args:
        config: the run.
        source: the clips of eval_dataset_id, at least one; None when it cannot be used.
        config_dir: where a relative user_prompt_library is looked for first; then in the working folder.

    Raises:
        ConfigError: a library is not there or wrong, a start image or clip is not there, or a render is too
            short to continue a clip.
        UnusableFileError: a clip to continue cannot be read.
    """
    validation, framerate = config.validation, config.data.framerate
    subjects: list[Subject] = []
    if validation.validation_prompt is not None:
        subjects.append(Subject("prompt", validation.validation_prompt))
    libraries: list[dict[str, PromptEntry]] = []
    if validation.validation_prompt_library:
        libraries.append(built_in_prompts())
    if validation.user_prompt_library is not None:
        path = existing_path(validation.user_prompt_library, key="user_prompt_library", config_dir=config_dir)
        libraries.append(load_prompts(path))
    for library in libraries:
        subjects += [_of_library(name, entry, framerate) for name, entry in library.items()]
    if validation.validation_using_datasets and source is not None:
        subjects += _held_out_subjects(source, validation.num_eval_images)
    return _requests(subjects, validation)


def command_requests(
    config: RunConfig, *, prompts: Sequence[str], image: Path | None, video: Path | None, segments: int
) -> tuple[RenderRequest, ...]:
    """Turn prompts of the command line into requests, all from the same start.

    Args:
        config: the run.
        prompts: at least one.
        image: start image, if any.
        video: clip to continue, if any; not both.
        segments: of each.

    Raises:
        ConfigError: the clip is shorter than what is continued, or the render is.
        UnusableFileError: the clip cannot be read.
    """
    start = None if image is None else Start(image)
    if video is not None:
        start = _end_of(video, config.data.framerate)
    return _requests([Subject(prompt, prompt, start, segments) for prompt in prompts], config.validation)


def _of_library(name: str, entry: PromptEntry, framerate: float) -> Subject:
    for key, path in (("image", entry.image), ("video", entry.video)):
        if path is not None and not path.is_file():
            raise ConfigError(
                f"user_prompt_library: {name}: {key} ({path}) is not there; correct the path, which starts "
                "at the library's folder"
            )
    start = None if entry.image is None else Start(entry.image)
    if entry.video is not None:
        start = _end_of(entry.video, framerate)
    return Subject(name, entry.prompt, start, entry.segments, entry)


def _end_of(video: Path, framerate: float) -> Start:
    """The last frames of a clip, as many as the authors continue from."""
    available = resampled_frames(probe(video).seconds, framerate)
    if available < CONTINUED_FRAMES:
        raise ConfigError(
            f"{video} has {available} frames at {framerate:g} fps; a clip is continued from its last "
            f"{CONTINUED_FRAMES}; give a longer one"
        )
    return Start(video, available - CONTINUED_FRAMES, CONTINUED_FRAMES)


def _held_out_subjects(held_out: DatasetPlan, most: int) -> Iterator[Subject]:
    # Of a file that is cut into several clips the first stands for all.
    firsts = (clip for clip in held_out.clips if clip.number in {None, 1})
    for clip in islice(firsts, most):
        record = clip.record
        yield Subject(Path(record.name).stem, record.captions[0], _start_of(clip))


def _start_of(clip: PlannedClip) -> Start | None:
    """What is given of a held-out clip: its start image, else what continuation takes, else nothing."""
    record, tasks = clip.record, clip.tasks
    if takes_start_images(tasks):
        if record.conditioning is not None:
            return Start(record.conditioning.path)
        return Start(record.path, clip.windows[0])
    given = min(given_frames(task) for task in tasks)
    return Start(record.path, clip.windows[0], given) if given else None


def _requests(subjects: Sequence[Subject], validation: ValidationSection) -> tuple[RenderRequest, ...]:
    taken: set[str] = set()
    requests: list[RenderRequest] = []
    for subject in subjects:
        unique = name = re.sub(r"[^\w.-]+", "-", subject.name).strip("-")[:NAME_LENGTH] or "clip"
        numbers = count(2)
        # Some disks know no difference between capital and small letters.
        while unique.casefold() in taken:
            unique = f"{name}-{next(numbers)}"
        taken.add(unique.casefold())
        requests += _sized(replace(subject, name=unique), validation)
    return tuple(requests)


def _sized(subject: Subject, validation: ValidationSection) -> Iterator[RenderRequest]:
    """One request per size, however often it is listed."""
    own, start = subject.own, subject.start
    frames = own.num_video_frames or validation.validation_num_video_frames
    given = max(0 if start is None else start.num_frames, CONTINUED_FRAMES if subject.segments > 1 else 0)
    if frames <= given:
        raise ConfigError(
            f"{subject.name}: {frames} frames are no more than the {given} that are given of a continuation; "
            f"set {given + TEMPORAL_STRIDE} or more (validation_num_video_frames, or num_video_frames of a "
            "library's prompt)"
        )
    steps, guidance = _steps_and_guidance(own, validation)
    for width, height in dict.fromkeys(own.resolution or validation.validation_resolution):
        yield RenderRequest(
            name=subject.name,
            prompt=subject.prompt,
            negative_prompt=(
                validation.validation_negative_prompt if own.negative_prompt is None else own.negative_prompt
            ),
            size=Bucket(width, height, frames),
            num_steps=steps,
            guidance=guidance,
            seed=validation.validation_seed if own.seed is None else own.seed,
            start_image=None if start is None else start.path,
            start_frame=0 if start is None else start.first,
            num_start_frames=1 if start is None else start.num_frames,
            num_segments=subject.segments,
            distilled=validation.validation_lora is not None,
        )


def _steps_and_guidance(own: PromptEntry, validation: ValidationSection) -> tuple[int, float]:
    steps, guidance = validation.validation_num_inference_steps, validation.validation_guidance
    if validation.validation_lora is not None:
        steps, guidance = DISTILLED_STEPS, DISTILLED_GUIDANCE
    steps = own.num_inference_steps or steps
    if validation.validation_lora is not None and steps > DISTILLED_GRID:
        raise ConfigError(
            f"num_inference_steps ({steps}) must be at most {DISTILLED_GRID} with validation_lora; lower it"
        )
    return steps, guidance if own.guidance is None else own.guidance
