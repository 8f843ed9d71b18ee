"""The two files that `init` writes, as JSON with a comment on every value that was chosen."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat_tune.data.naming import some
from longcat_tune.runs.init_captions import CaptionChoice
from longcat_tune.runs.init_choices import FramesChoice, choose_repeats
from longcat_tune.runs.init_files import Dataset, Run
from longcat_tune.runs.problems import counted

COMMENT_WIDTH = 96
SOME = 3


@dataclass(frozen=True, slots=True)
class Line:
    """A key of a file, its value, or the keys inside it, and what the comment above it says."""

    key: str
    value: Any
    why: str = ""


def data_text(datasets: Sequence[Dataset], *, about: str) -> str:
    """The content of multidatabackend.json.

    Args:
        datasets: at least one.
        about: the first comment.
    """
    entries = [lines for dataset in datasets for lines in _entries(dataset)]
    objects = ",\n".join(_object(lines, "  ") for lines in entries)
    return f"{_comment(about, '')}[\n{objects}\n]\n"


def config_text(run: Run, data_file: Path) -> str:
    """The content of config.json, which lies beside the data file."""
    recipe, every = run.recipe, run.recipe.every
    width, height = run.frame
    framerate = [Line("framerate", run.framerate.value, run.framerate.why)] if run.framerate else []
    lines = [
        Line("model_type", "lora"),
        Line("model_family", "longcat_video"),
        Line("model_flavour", run.flavour.value, run.flavour.why),
        Line("output_dir", run.output_dir.as_posix()),
        Line("data_backend_config", data_file.name),
        Line("resolution", run.size.value.resolution, run.size.why),
        *framerate,
        Line("train_batch_size", recipe.batch_size, recipe.batch_why),
        Line("lora_rank", 8, "enough for a subject or a style; 32 and more for many new motions"),
        Line("learning_rate", recipe.learning_rate),
        *(Line(key, value, why) for key, (value, why) in recipe.how.items()),
        Line("max_train_steps", run.steps.value, run.steps.why),
        Line("checkpoint_step_interval", every),
        _prompt_line(run),
        Line("validation_resolution", f"{width}x{height}", "the size that most of the files are brought to"),
        Line("validation_num_video_frames", run.num_frames),
        Line("validation_num_inference_steps", recipe.render_steps),
        Line("validation_guidance", 4.0),
        Line("validation_step_interval", every, "each render shows how far the training has come"),
    ]
    return _object(lines, "") + "\n"


def _prompt_line(run: Run) -> Line:
    if run.prompts is None:
        return Line("validation_prompt", run.prompt.value, run.prompt.why)
    why = "new things to be learnt, and old ones to be kept"
    return Line("user_prompt_library", str(run.prompts.absolute()), why)


def _entries(dataset: Dataset) -> list[list[Line]]:
    """The entry of the dataset, and that of its start images."""
    lines = [
        Line("id", dataset.dataset_id),
        Line("type", "local"),
        Line("dataset_type", dataset.dataset_type),
        Line("instance_data_dir", str(dataset.folder)),
        *_caption_lines(dataset.captions),
    ]
    if dataset.size.bucket_table is not None:
        why = "the sizes that the model's authors train at; without it 480 means 512 pixels on the grid of 64"
        lines.append(Line("bucket_table", dataset.size.bucket_table, why))
    repeats = choose_repeats(dataset.count)
    if repeats is not None:
        lines.append(Line("repeats", repeats.value, repeats.why))
    if dataset.keeps_base:
        lines.append(Line("is_regularisation_data", True, dataset.keeps_base))
    starts = []
    if dataset.start_images is not None:
        lines.append(Line("is_i2v", True, dataset.start_images.why))
        if dataset.start_images.value is not None:
            starts.append(_starts_entry(dataset.start_images.value))
            lines.append(Line("conditioning_data", ["start-images"]))
        if dataset.keeps_base:
            lines.append(Line("task_mix", {"t2v": 0.5, "i2v": 0.5}, "text-to-video shall stay, too"))
    if dataset.frames is not None:
        lines.append(Line("video", _video_lines(dataset.frames)))
    return [lines, *starts]


def _caption_lines(captions: CaptionChoice) -> list[Line]:
    (strategy, value), *others = captions.keys.items()
    lines = [Line(strategy, value, captions.why), *(Line(key, inner) for key, inner in others)]
    if captions.missing:
        count, names = counted(len(captions.missing), "file"), some(captions.missing, SOME)
        why = (
            f"{count} without a caption ({names}): trained on the empty "
            'prompt; write what is missing and set this to "error", so that nothing can be missing unnoticed'
        )
        lines.append(Line("empty_caption", "use", why))
    return lines


def _starts_entry(folder: Path) -> list[Line]:
    return [
        Line("id", "start-images"),
        Line("dataset_type", "conditioning"),
        Line("instance_data_dir", str(folder)),
    ]


def _video_lines(frames: FramesChoice) -> list[Line]:
    lines = [
        Line("num_frames", frames.num_frames),
        Line("bucket_strategy", frames.strategy.value, frames.strategy.why),
        Line("clip_selection", frames.selection.value, frames.selection.why),
    ]
    if frames.min_frames is not None:
        lines.append(Line("min_frames", frames.min_frames.value, frames.min_frames.why))
    return lines


def _object(lines: Sequence[Line], indent: str) -> str:
    inner = f"{indent}  "
    parts = []
    for number, line in enumerate(lines):
        comma = "," if number < len(lines) - 1 else ""
        parts.append(
            f"{_comment(line.why, inner)}{inner}{json.dumps(line.key)}: {_value(line, inner)}{comma}\n"
        )
    return f"{indent}{{\n{''.join(parts)}{indent}}}"


def _value(line: Line, indent: str) -> str:
    match line.value:
        case [Line(), *_] as nested:
            return _object(nested, indent).lstrip()
        case value:
            return json.dumps(value, ensure_ascii=False)


def _comment(text: str, indent: str) -> str:
    # A name with a line break, of whatever script, would end the comment.
    words = " ".join(text.split())
    wrapped = textwrap.wrap(words, COMMENT_WIDTH - len(indent), break_long_words=False)
    return "".join(f"{indent}// {line}\n" for line in wrapped)
