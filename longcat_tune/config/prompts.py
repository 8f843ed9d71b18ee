"""Prompt libraries: files of prompts to render, each with what it changes of the validation keys.

The built-in one is such a file, too. Looks for no start image; whoever plans the renders does.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from longcat_tune.config.checking import Findings, drop_nulls, sort_keys, validate
from longcat_tune.config.foreign import ForeignKeys
from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.config.schema import Section
from longcat_tune.config.values import FrameSize, check_num_frames, frame_sizes
from longcat_tune.errors import ConfigError


class PromptEntry(Section):
    """One prompt; whatever is null is as the validation keys say."""

    prompt: str = Field(min_length=1, description="What to show.")
    negative_prompt: str | None = Field(default=None, description="What guidance steers away from.")
    resolution: Annotated[tuple[FrameSize, ...], BeforeValidator(frame_sizes)] | None = Field(
        default=None, description="WIDTHxHEIGHT, or several."
    )
    num_video_frames: Annotated[int, BeforeValidator(check_num_frames)] | None = Field(
        default=None, ge=1, description="Frames, 4k + 1; of each segment."
    )
    num_inference_steps: int | None = Field(default=None, ge=1, description="Denoising steps.")
    guidance: float | None = Field(default=None, ge=0, description="Strength of the prompt.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Seed of the first noise.")
    image: Path | None = Field(default=None, description="Start image.")
    video: Path | None = Field(default=None, description="Clip that is continued from its last frames on.")
    segments: int = Field(
        default=1, ge=1, description="How often it goes on from its own last frames, the first one included."
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.image is not None and self.video is not None:
            raise ValueError("image and video cannot both be the start; keep one")
        return self


def load_prompts(path: Path) -> dict[str, PromptEntry]:
    """Read a library: an object with a prompt, or an object with the prompt and more, for every id.

    Args:
        path: the file; relative paths in it start at its folder, or at the working folder.

    Raises:
        ConfigError: with everything that is wrong in the file.
    """
    raw = read_jsonc(path)
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f'{path}: must hold an object of prompts by id, such as {{"cat": "A cat runs."}}')
    findings = Findings()
    entries: dict[str, PromptEntry] = {}
    for identifier, given in raw.items():
        where = f"{path}: {identifier}"
        values: dict[str, Any] = given if isinstance(given, dict) else {"prompt": given}
        own = sort_keys(
            values, known=PromptEntry.model_fields, foreign=ForeignKeys(), where=where, findings=findings
        )
        entry = validate(PromptEntry, drop_nulls(own), where={}, default_where=where, findings=findings)
        if entry is not None:
            entries[identifier] = _with_paths(entry, path.parent)
    findings.settle(str(path))
    return entries


def built_in_prompts() -> dict[str, PromptEntry]:
    """Read the library that comes with the tool."""
    with as_file(files("longcat_tune").joinpath("assets", "prompts.json")) as path:
        return load_prompts(path)


def _with_paths(entry: PromptEntry, folder: Path) -> PromptEntry:
    found = {
        name: folder / given
        for name, given in (("image", entry.image), ("video", entry.video))
        if given is not None and (folder / given).is_file()
    }
    return entry.model_copy(update=found)
