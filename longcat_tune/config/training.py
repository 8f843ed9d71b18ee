"""Section training: how long, in which steps, with which optimizer, at which cost in memory."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from longcat_tune.config.schema import Instead, Later, Section
from longcat_tune.config.values import synonyms, zero_is_none

_EMA_LATER = Later("averaged weights come with the training stage")

OPTIMIZER_NAMES = {
    "adamw_bf16": "adamw",
    "torch-adamw": "adamw",
    "optimi-adamw": "adamw",
    "bnb-adamw": "adamw",
    "bnb-adamw-paged": "adamw",
    "bnb-adamw8bit": "adamw_8bit",
    "bnb-adamw8bit-paged": "adamw_8bit",
    "ao-adamw8bit": "adamw_8bit",
    "adamw_schedulefree+aggressive": "adamw_schedulefree",
    "adamw_schedulefree+no_kahan": "adamw_schedulefree",
    "torch-adafactor": "adafactor",
    "sdnq-adafactor": "adafactor",
    "sdnq-adamw": "adamw",
    "sdnq-muon": "muon",
}


def resume_choice(value: object) -> object:
    """Read none and false as "start afresh"."""
    return None if value is False or str(value).lower() in {"none", "false", ""} else value


class TrainingSection(Section):
    """The loop: batches, length, optimizer, activations, resuming."""

    train_batch_size: int = Field(
        default=1, ge=1, description="Clips in one forward pass, all of one bucket."
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Forward passes whose gradients make one optimizer step."
    )
    max_train_steps: Annotated[int | None, BeforeValidator(zero_is_none)] = Field(
        default=None,
        ge=1,
        description="Optimizer steps to train; wins over num_train_epochs. Give one of the two.",
    )
    num_train_epochs: Annotated[int | None, BeforeValidator(zero_is_none)] = Field(
        default=None, ge=1, description="Passes over all clips."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate.")
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "adafactor", "prodigy", "adamw_schedulefree", "muon"],
        synonyms(OPTIMIZER_NAMES, log=True),
        Later("other optimizers come with the training stage"),
        Instead(otherwise="adamw"),
    ] = Field(default="adamw", description="SimpleTuner's names are mapped to these, with a line in the log.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of AdamW's mean of gradients.")
    adam_beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of AdamW's mean of squared gradients."
    )
    adam_weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="AdamW's guard against division by zero.")
    lr_scheduler: Annotated[
        Literal[
            "constant",
            "constant_with_warmup",
            "cosine",
            "cosine_with_restarts",
            "linear",
            "polynomial",
            "rex",
        ],
        synonyms({"cosine_with_warmup": "cosine"}, log=True),
        Later("other schedules come with the training stage", available=("constant",)),
        Instead({"sine": "cosine_with_restarts"}),
    ] = Field(default="constant_with_warmup", description="Course of the learning rate.")
    lr_warmup_steps: int = Field(
        default=0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Bound of the gradient, by grad_clip_method; 0: none."
    )
    grad_clip_method: Literal["norm", "value"] = Field(
        default="norm", description="norm: the whole gradient is scaled down; value: each element is cut."
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Recompute activations in the backward pass instead of keeping them."
    )
    gradient_checkpointing_interval: int = Field(
        default=1, ge=1, description="Recompute every n-th block only; 1 takes least memory."
    )
    gradient_checkpointing_offload: Annotated[bool, Later("it comes with the memory stage")] = Field(
        default=False, description="Keep the inputs of recomputed blocks in host memory."
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="Seed of everything that is drawn.")
    use_ema: Annotated[bool, _EMA_LATER] = Field(
        default=False, description="Keep an exponential moving average of the adapter."
    )
    ema_decay: Annotated[float, _EMA_LATER] = Field(
        default=0.995, gt=0, lt=1, description="Decay of the average."
    )
    ema_validation: Annotated[Literal["none", "ema_only", "comparison"], _EMA_LATER] = Field(
        default="none", description="Render with the average, without it, or both."
    )
    resume_from_checkpoint: Annotated[
        str | None,
        BeforeValidator(resume_choice),
        PlainSerializer(lambda value: value or "none", when_used="json"),
    ] = Field(
        default="latest",
        description="latest: the newest complete checkpoint of output_dir, if any; a folder; none: start "
        "afresh.",
    )

    @model_validator(mode="after")
    def _warmup_needs_its_schedule(self) -> Self:
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ValueError(
                f"lr_warmup_steps ({self.lr_warmup_steps}) has no effect with lr_scheduler constant; "
                "set lr_scheduler to constant_with_warmup"
            )
        return self
