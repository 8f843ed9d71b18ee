"""One entry of multidatabackend.json: its keys, defaults, bounds and meaning, each written once.

Knows nothing of files: config.load reads them, fills in the run's defaults and compares entries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from longcat_tune.config.data import (
    CAPTION_STRATEGY_NAMES,
    CaptionStrategy,
    DataSection,
    ResolutionType,
)
from longcat_tune.config.schema import FromRun, Instead, Section
from longcat_tune.config.values import as_list, check_id, check_num_frames, synonyms

DatasetType = Literal["video", "image", "conditioning", "eval", "text_embeds"]
BucketTable = Literal["official_480p", "official_720p"]

_RUN = DataSection()


class CaptionTable(Section):
    """Where caption_strategy parquet, csv and jsonl find the captions."""

    path: Path = Field(
        description="The table; relative to instance_data_dir, to the data file or to the working folder."
    )
    filename_column: str = Field(
        default="filename",
        description="Column of the file's path inside instance_data_dir, with its extension or without.",
    )
    caption_column: str = Field(
        default="caption", description="Column of the caption; a list in it is several captions."
    )
    fallback_caption_column: str | None = Field(
        default=None, description="Column taken where the caption is empty."
    )


class CaptionShuffle(Section):
    """Variants of tag captions in another order, used beside the original."""

    enable: bool = Field(default=True, description="Make variants.")
    count: int = Field(default=3, ge=1, description="Variants of each caption.")
    seed: int | None = Field(default=None, description="Of the orders. null: the run's seed.")
    split_on: Literal["comma", "space", "period"] = Field(
        default="comma", description="What stands between the tags."
    )
    position_start: int = Field(
        default=0, ge=0, description="So many tags stay in front, such as a trigger word."
    )
    include_original: bool = Field(default=True, description="Train on the caption as written too.")


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
    clip_selection: Literal["start", "middle", "random", "all"] = Field(
        default="start",
        description="Which part of a longer video is used: start, middle, random (another window each time, "
        "of at most 8 that are cached) or all (consecutive windows, each a clip of its own).",
    )
    continuation_frames: Annotated[int | None, BeforeValidator(check_num_frames)] = Field(
        default=None,
        ge=5,
        description="Train to continue clips: so many leading frames are given, clean (4k + 1; the model's "
        "own is 13), and the rest is learned.",
    )
    frames_fps: float | None = Field(
        default=None,
        gt=0,
        description="Frames per second of clips that are folders of numbered pictures. null: the run's "
        "framerate.",
    )

    @property
    def num_frames_given(self) -> bool:
        """Whether the user set num_frames, which then bounds resolution_frames too."""
        return "num_frames" in self.model_fields_set

    @model_validator(mode="after")
    def _something_is_left_to_learn(self) -> Self:
        fixed = self.bucket_strategy == "aspect_ratio" or self.num_frames_given
        if fixed and self.continuation_frames is not None and self.continuation_frames >= self.num_frames:
            raise ValueError(
                f"video.continuation_frames ({self.continuation_frames}) must be below video.num_frames "
                f"({self.num_frames}); lower one or raise the other"
            )
        return self

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
    caption_strategy: Annotated[CaptionStrategy | None, CAPTION_STRATEGY_NAMES, FromRun()] = Field(
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
    caption_table: CaptionTable | None = Field(
        default=None,
        description="Where caption_strategy parquet, csv and jsonl find the captions.",
    )
    caption_shuffle: CaptionShuffle | None = Field(
        default=None,
        description="Variants of tag captions in another order, beside the original.",
    )
    empty_caption: Literal["error", "use"] = Field(
        default="error",
        description="A clip whose caption is missing or empty: error refuses it; use trains it on the empty "
        "prompt.",
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
        Literal["center", "corner", "random"],
        synonyms({"centre": "center"}),
        Instead({"face": "center"}),
    ] = Field(
        default="center",
        description="Which part the crop keeps: the centre, the upper left corner, or one that the seed "
        "chooses for each clip.",
    )
    crop_aspect: Literal["preserve", "square", "closest", "random"] = Field(
        default="preserve",
        description="preserve: the bucket nearest to the clip's own aspect ratio; square: one for all; "
        "closest and random: that of crop_aspect_buckets which is nearest, or which the seed chooses for "
        "each clip.",
    )
    crop_aspect_buckets: Annotated[tuple[Annotated[float, Gt(0)], ...], BeforeValidator(as_list)] = Field(
        default=(),
        description="Aspect ratios (width / height) for crop_aspect closest and random.",
    )
    repeats: int = Field(
        default=0, ge=0, description="Extra uses: a clip is used repeats + 1 times an epoch."
    )
    probability: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the dataset's batches that each epoch takes; the others come in the epochs "
        "after.",
    )
    max_num_samples: int | None = Field(
        default=None, ge=1, description="Use only this many clips, chosen by the seed."
    )
    start_step: int = Field(
        default=0, ge=0, description="First step that uses the dataset; steps count from 1."
    )
    end_step: int | None = Field(default=None, ge=1, description="Last step that uses the dataset.")
    is_regularisation_data: bool = Field(
        default=False,
        description="Clips of what the model knows and shall not forget: trained towards its own prediction "
        "without the LoRA, not towards the clip; such a step computes one forward pass more.",
    )
    task_mix: dict[Literal["t2v", "i2v", "continuation"], Annotated[float, Ge(0)]] | None = Field(
        default=None,
        description='Shares of tasks, such as {"t2v": 0.5, "i2v": 0.5}: each batch is one task. null: '
        "image-to-video with is_i2v, continuation with video.continuation_frames, else text-to-video.",
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
    def _files_are_given(self) -> Self:
        if self.dataset_type != "text_embeds" and "instance_data_dir" not in self.model_fields_set:
            raise ValueError("instance_data_dir is missing; set it to the folder of the files")
        return self

    @model_validator(mode="after")
    def _captions_are_given(self) -> Self:
        strategy = self.caption_strategy
        if strategy == "instanceprompt" and not self.instance_prompt:
            raise ValueError(
                "instance_prompt (null) must be set with caption_strategy instanceprompt; write the caption "
                "of every clip there"
            )
        in_table = strategy in {"parquet", "csv", "jsonl"}
        if in_table and self.caption_table is None:
            raise ValueError(
                f"caption_table (null) must say where the captions are with caption_strategy {strategy}; "
                f'set it to {{"path": "captions.{strategy}"}}'
            )
        if self.caption_table is not None and not in_table:
            raise ValueError(
                f"caption_table has no effect with caption_strategy {strategy or 'null'}; set "
                "caption_strategy to parquet, csv or jsonl, or remove it"
            )
        if self.caption_shuffle is not None and strategy is None:
            raise ValueError(
                "caption_shuffle has no effect with caption_strategy null; set caption_strategy, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _tasks_fit_together(self) -> Self:
        mix, given_frames = self.task_mix, self.video.continuation_frames
        if mix is not None and not any(mix.values()):
            raise ValueError("task_mix must give some task a share above 0; raise one or remove it")
        continues = mix is not None and mix.get("continuation", 0) > 0
        if continues and given_frames is None:
            raise ValueError(
                "video.continuation_frames (null) must be set with continuation in task_mix; the model's own "
                "is 13"
            )
        if given_frames is not None and mix is not None and not continues:
            raise ValueError(
                f"video.continuation_frames ({given_frames}) has no effect without continuation in task_mix; "
                "give it a share there"
            )
        if self.is_i2v and mix is not None and not mix.get("i2v"):
            raise ValueError("is_i2v (true) has no effect without i2v in task_mix; give it a share there")
        if self.is_i2v and given_frames is not None and mix is None:
            raise ValueError(
                f"is_i2v (true) and video.continuation_frames ({given_frames}) are two tasks; say how often "
                'each is trained: "task_mix": {"i2v": 0.5, "continuation": 0.5}'
            )
        return self

    @model_validator(mode="after")
    def _start_images_show_the_start(self) -> Self:
        if self.conditioning_data and self.video.clip_selection != "start":
            raise ValueError(
                f"video.clip_selection ({self.video.clip_selection}) must be start with conditioning_data, "
                "whose images show the start of their clips; change it, or leave conditioning_data out"
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        low, high = self.minimum_aspect_ratio, self.maximum_aspect_ratio
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"minimum_aspect_ratio ({low:g}) must not be above maximum_aspect_ratio ({high:g}); swap them"
            )
        if self.end_step is not None and self.end_step < self.start_step:
            raise ValueError(
                f"end_step ({self.end_step}) must not be below start_step ({self.start_step}); swap them"
            )
        return self

    @model_validator(mode="after")
    def _crops_fit_together(self) -> Self:
        chosen = self.crop_aspect in {"closest", "random"}
        if chosen and not self.crop_aspect_buckets:
            raise ValueError(
                f"crop_aspect_buckets must list aspect ratios with crop_aspect {self.crop_aspect}; such as "
                "[0.58, 1.0, 1.73]"
            )
        if self.crop_aspect_buckets and not chosen:
            raise ValueError(
                f"crop_aspect_buckets has no effect with crop_aspect {self.crop_aspect}; set crop_aspect to "
                "closest or random, or remove it"
            )
        return self
