"""Section validation: what is rendered during a run, when, and how large."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from longcat_tune.config.schema import Section
from longcat_tune.config.values import FrameSize, check_num_frames, frame_sizes


class ValidationSection(Section):
    """Renders and evaluation."""

    validation_step_interval: int = Field(
        default=100, ge=0, description="Render every so many steps; 0: never."
    )
    validation_epoch_interval: int | None = Field(
        default=None, ge=1, description="Render after every so many epochs, too."
    )
    validation_on_startup: bool = Field(
        default=True, description="Render before the first step, to compare with."
    )
    validation_prompt: str | None = Field(default=None, description="Prompt of the render.")
    validation_negative_prompt: str = Field(default="", description="What guidance steers away from.")
    validation_prompt_library: bool = Field(
        default=False, description="Render the twelve built-in prompts, too; English and Chinese."
    )
    user_prompt_library: Path | None = Field(
        default=None,
        description="JSON file of prompts to render, too, by id: each a text, or an object with prompt and "
        "any of negative_prompt, resolution, num_video_frames, num_inference_steps, guidance, seed, image "
        "(to start from), video (to continue), segments (to go on from its own last frames).",
    )
    validation_resolution: Annotated[
        tuple[FrameSize, ...],
        BeforeValidator(frame_sizes),
        PlainSerializer(lambda sizes: [str(size) for size in sizes], when_used="json"),
    ] = Field(
        default=(FrameSize(480, 832),),
        description="WIDTHxHEIGHT in pixels, or several with commas or as a list; both sides divisible by "
        "16.",
    )
    validation_num_video_frames: Annotated[int, BeforeValidator(check_num_frames)] = Field(
        default=93, ge=1, description="Frames of a render; 4k + 1."
    )
    validation_num_inference_steps: int = Field(
        default=40, ge=1, description="Denoising steps; 35 to 45 to judge quality, fewer for a quick look."
    )
    validation_guidance: float = Field(
        default=4.0,
        ge=0,
        description="Strength of the prompt; 3.5 to 5 works well. At 1 or below one pass per step suffices.",
    )
    validation_seed: int = Field(default=42, ge=0, lt=2**32, description="Seed of the first noise.")
    validation_lora: Path | None = Field(
        default=None,
        description="LoRA that works in renders only, made for few steps, such as Meituan's "
        "cfg_step_lora.safetensors: renders take 16 steps of its schedule at guidance 1, a sixth of the time "
        "of 50 steps with guidance, whatever validation_num_inference_steps and validation_guidance say.",
    )
    validation_refinement_lora: Path | None = Field(
        default=None,
        description="Meituan's refinement_lora.safetensors: every render is then brought to the 720p class, "
        "with twice the frames, in 5 more steps; best with block-sparse attention. If that does not fit into "
        "memory renders stay as they were.",
    )
    validation_using_datasets: bool = Field(
        default=False, description="Render the captions (and start frames) of eval_dataset_id."
    )
    eval_dataset_id: str | None = Field(
        default=None,
        description="Id of the held-out dataset that renders and evaluation take their samples from.",
    )
    num_eval_images: int = Field(
        default=4,
        ge=1,
        description="Clips that renders take from eval_dataset_id, and evaluation from every dataset that is "
        "held out: the first ones by name.",
    )
    eval_steps_interval: int | None = Field(
        default=None,
        ge=1,
        description="Measure the loss on held-out clips (of eval_dataset_id and of datasets of type eval) "
        "every so many steps; null: whenever a checkpoint is due. It is measured before the first step and "
        "after the last one, too, always with the same noise, so that runs can be compared. The checkpoint "
        "with the lowest loss is kept.",
    )
    validation_preview: bool = Field(
        default=False,
        description="Show small frames while a render is being made, in events.jsonl and as a picture beside "
        "the videos.",
    )
    validation_preview_steps: int = Field(
        default=1, ge=1, description="Denoising steps between two previews."
    )

    @property
    def renders_in_training(self) -> bool:
        """Whether a run renders at all, if it has something to render."""
        after_steps = self.validation_step_interval > 0 or self.validation_epoch_interval is not None
        return after_steps or self.validation_on_startup

    @model_validator(mode="after")
    def _datasets_need_an_id(self) -> Self:
        if self.validation_using_datasets and self.eval_dataset_id is None:
            raise ValueError(
                "eval_dataset_id (null) must name a dataset when validation_using_datasets is true; "
                "set it to the id of your validation split"
            )
        return self
