"""Section data: where the datasets are described, and what their entries inherit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longcat_tune.config.schema import MayChange, Section
from longcat_tune.config.values import synonyms

ResolutionType = Literal["pixel", "pixel_area", "area"]
CaptionStrategy = Literal["textfile", "filename", "instanceprompt", "parquet", "csv", "jsonl"]

CAPTION_STRATEGY_NAMES = synonyms({"instance_prompt": "instanceprompt"})
BUCKET_GRID = 64

logger = logging.getLogger(__name__)


def keep_bucket_grid(value: object) -> int:
    """Replace another alignment, with a warning."""
    if str(value) != str(BUCKET_GRID):
        logger.warning(
            "aspect_bucket_alignment: %s is replaced by %d, which the model needs", value, BUCKET_GRID
        )
    return BUCKET_GRID


class DataSection(Section):
    """What all datasets share."""

    data_backend_config: Annotated[Path | None, MayChange()] = Field(
        default=None,
        description="The file that lists the datasets (multidatabackend.json), relative to this file or to "
        "the working folder; needed to train and to cache.",
    )
    resolution: float = Field(
        default=480.0, gt=0, description="Size that clips are brought to, in the unit of resolution_type."
    )
    resolution_type: ResolutionType = Field(
        default="pixel",
        description="pixel: length of the shorter edge; pixel_area: edge of the square with the same area; "
        "area: megapixels.",
    )
    aspect_bucket_alignment: Annotated[Literal[64], BeforeValidator(keep_bucket_grid)] = Field(
        default=64,
        description="Grid of bucket sizes in pixels; always 64, another value is replaced with a warning.",
    )
    framerate: float = Field(
        default=30.0,
        gt=0,
        description="Frames per second that clips are resampled to; the model's authors use 15 in their "
        "480p stage.",
    )
    caption_strategy: Annotated[CaptionStrategy, CAPTION_STRATEGY_NAMES] = Field(
        default="textfile",
        description="textfile: the .txt of the same name; filename: the name with underscores as spaces; "
        "instanceprompt: one caption for all; parquet, csv, jsonl: the table of each entry's caption_table.",
    )
    caption_dropout_probability: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of clips trained on the empty prompt, which guidance needs.",
    )
    video_backend: Annotated[Literal["auto", "pyav", "decord"], MayChange()] = Field(
        default="auto",
        description="Reader of video files. auto takes pyav, exact by presentation time; decord is refused "
        "on files where it is known to return wrong frames, and is not faster.",
    )
