"""One entry of multidatabackend.json: its keys, defaults, bounds and meaning, each written once.

Knows nothing of files: config.load reads them, fills in the run's defaults and compares entries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from longcat_tune.config.data import (
    CAPTION_STRATEGY_LATER,
    CAPTION_STRATEGY_NAMES,
    CaptionStrategy,
    DataSection,
    ResolutionType,
)
from longcat_tune.config.schema import FromRun, Instead, Later, Section
from longcat_tune.config.values import as_list, check_id, check_num_frames, synonyms

DatasetType = Literal["video", "image", "conditioning", "eval", "text_embeds"]
BucketTable = Literal["official_480p", "official_720p"]

_RUN = DataSection()
_LATER = "the dataset stage adds it"


class VideoOptions(Section):
    """How frames are taken from a video."""

    num_frames: Annotated[int, BeforeValidator(check_num_frames)] = Field(
        default=93, ge=1, description="Frames of a training clip after resampling to framerate; 4k + 1."
    )
    min_frames: int = Field(
        default=5,
        ge=1,
        description="Clips with fewer frames after resampling are refused, with a line that says so.",
    )
    max_frames: int | None = Field(
        default=None,
        ge=1,
        description="Longest clip: resolution_frames cuts longer ones to it, aspect_ratio refuses them. "
        "null: under resolution_frames num_frames where it is set, else no limit.",
    )
    bucket_strategy: Literal["aspect_ratio", "resolution_frames"] = Field(
        default="aspect_ratio",
        description="aspect_ratio: every clip has num_frames; resolution_frames: clips keep their length, "
        "rounded down to frame_interval, in buckets such as 480x832@93.",
    )
    frame_interval: int = Field(
        default=4,
        ge=1,
        description="Step of clip lengths under resolution_frames, rounded up to a multiple of 4.",
    )
    clip_selection: Annotated[
        Literal["start", "middle", "random", "all"], Later(_LATER, available=("start", "middle"))
    ] = Field(
        default="start",
        description="Which part of a longer video is used: start, middle, random (another window per epoch) "
        "or all (consecutive windows).",
    )
    continuation_frames: Annotated[int | None, Later("the dataset stage adds continuation training")] = Field(
        default=None,
        ge=1,
        description="Clean leading frames of a continuation clip (4k + 1); the rest is learned.",
    )

    @property
    def num_frames_given(self) -> bool:
        """Whether the user set num_frames, which then bounds resolution_frames too."""
        return "num_frames" in self.model_fields_set

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> Self:
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise ValueError(
                f"video.max_frames ({self.max_frames}) must not be below video.min_frames "
                f"({self.min_frames}); "
                "raise one or lower the other"
            )
        return self


class DatasetEntry(Section):
    """One dataset, after the run's defaults were filled in."""

    id: Annotated[str, AfterValidator(check_id)] = Field(
        description="Unique name; letters, digits, dot, underscore and dash."
    )
    type: Annotated[
        Literal["local"],
        Instead({"aws": "local", "csv": "local", "huggingface": "local", "webshart": "local"}),
    ] = Field(default="local", description="Where the files are; only local folders are read.")
    dataset_type: Annotated[
        DatasetType, Instead({"image_embeds": "video", "conditioning_image_embeds": "conditioning"})
    ] = Field(
        default="video",
        description="video or image: trained on; conditioning: start images of other entries; eval: only "
        "rendered and evaluated; text_embeds: names the folder of cached text features.",
    )
    disabled: bool = Field(default=False, description="Leave the entry out.")
    instance_data_dir: Path = Field(
        default_factory=Path,
        description="Folder of the files, scanned with its subfolders; relative to the data file or to the "
        "working folder. Required, except for text_embeds.",
    )
    caption_strategy: Annotated[
        CaptionStrategy | None, CAPTION_STRATEGY_NAMES, FromRun(), CAPTION_STRATEGY_LATER
    ] = Field(
        default=_RUN.caption_strategy,
        description="As in the run's config, or null for no captions at all: every clip trains on the empty "
        "prompt. Conditioning entries never have captions.",
    )
    instance_prompt: str | None = Field(
        default=None, description="The caption of every clip under instanceprompt."
    )
    disable_multiline_split: bool = Field(
        default=False, description="Read a .txt as one caption instead of one per line."
    )
    caption_shuffle: Annotated[dict[str, Any] | None, Later(_LATER)] = Field(
        default=None, description="Shuffled variants of tag captions."
    )
    resolution: Annotated[float, FromRun()] = Field(
        default=_RUN.resolution,
        gt=0,
        description="Target size in the unit of resolution_type.",
    )
    resolution_type: Annotated[ResolutionType, FromRun()] = Field(
        default=_RUN.resolution_type,
        description="pixel: length of the shorter edge; pixel_area: edge of the square of the same area; "
        "area: megapixels.",
    )
    is_i2v: bool = Field(
        default=False,
        description="Image-to-video: the first frame is given, clean. May also stand inside video.",
    )
    conditioning_data: Annotated[tuple[str, ...], BeforeValidator(as_list)] = Field(
        default=(),
        description="Ids of conditioning entries; a clip's partner has the same relative path and name with "
        "any image extension. Empty with is_i2v: the clip's own first frame.",
    )
    cache_dir: Path | None = Field(
        default=None, description="Of a text_embeds entry: folder of the cached text features."
    )
    cache_dir_vae: Path | None = Field(
        default=None,
        description="Folder of the cached latents, relative to the working folder; entries may share one. "
        "null: output_dir/cache/vae/<id>.",
    )
    crop: bool = Field(
        default=True,
        description="Clips are resized to cover their bucket and cropped to it; false means the same, "
        "because a bucket has the clip's own aspect ratio.",
    )
    crop_style: Annotated[
        Literal["center", "corner", "random", "face"], synonyms({"centre": "center"}), Later(_LATER)
    ] = Field(default="center", description="Which part the crop keeps.")
    crop_aspect: Annotated[Literal["preserve", "square", "closest", "random"], Later(_LATER)] = Field(
        default="preserve", description="preserve: the bucket nearest to the clip's own aspect ratio."
    )
    repeats: int = Field(
        default=0, ge=0, description="Extra uses: a clip is used repeats + 1 times an epoch."
    )
    probability: Annotated[float, Later(_LATER)] = Field(
        default=1.0, ge=0, description="Weight of the dataset among the others."
    )
    max_num_samples: Annotated[int | None, Later(_LATER)] = Field(
        default=None, ge=1, description="Use only this many clips, chosen by the seed."
    )
    start_step: Annotated[int, Later(_LATER)] = Field(
        default=0, ge=0, description="First step that uses the dataset."
    )
    end_step: Annotated[int | None, Later(_LATER)] = Field(
        default=None, ge=1, description="Last step that uses the dataset."
    )
    task_mix: Annotated[dict[str, float] | None, Later(_LATER)] = Field(
        default=None, description='Shares of tasks, such as {"t2v": 0.5, "i2v": 0.5}.'
    )
    minimum_image_size: float | None = Field(
        default=None,
        gt=0,
        description="Refuse smaller clips; in the unit of resolution_type (pixel and pixel_area: the "
        "shorter edge).",
    )
    minimum_aspect_ratio: float | None = Field(
        default=None, gt=0, description="Refuse clips with width / height below."
    )
    maximum_aspect_ratio: float | None = Field(
        default=None, gt=0, description="Refuse clips with width / height above."
    )
    max_upscale_threshold: float | None = Field(
        default=None,
        ge=0,
        description="Refuse clips that would be enlarged by more than this share; 0.25 allows 25 %.",
    )
    bucket_table: BucketTable | None = Field(
        default=None,
        description="null: the 64-pixel grid; official_480p, official_720p: the sizes the model's authors "
        "train at (multiples of 32, 832x480 among them).",
    )
    allow_short: bool = Field(
        default=False,
        description="Under aspect_ratio, train clips shorter than num_frames at their own 4k + 1 length "
        "instead of refusing them.",
    )
    video: VideoOptions = Field(default=VideoOptions(), description="How frames are taken from a video.")

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if self.dataset_type != "text_embeds" and "instance_data_dir" not in self.model_fields_set:
            raise ValueError("instance_data_dir is missing; set it to the folder of the files")
        if self.caption_strategy == "instanceprompt" and not self.instance_prompt:
            raise ValueError(
                "instance_prompt (null) must be set with caption_strategy instanceprompt; write the caption "
                "of every "
                "clip there"
            )
        low, high = self.minimum_aspect_ratio, self.maximum_aspect_ratio
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"minimum_aspect_ratio ({low:g}) must not be above maximum_aspect_ratio ({high:g}); swap them"
            )
        return self
