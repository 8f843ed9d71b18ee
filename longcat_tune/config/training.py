"""Section training: how long, in which steps, with which optimizer, at which cost in memory."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from longcat_tune.config.schema import Instead, MayChange, Section
from longcat_tune.config.values import synonyms, zero_is_none

CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")
PRODIGY_LEAST_RATE = 0.1
"""Prodigy multiplies the rate it finds by learning_rate; its authors leave that at 1."""

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
    max_train_steps: Annotated[int | None, BeforeValidator(zero_is_none), MayChange()] = Field(
        default=None,
        ge=1,
        description="Optimizer steps to train; wins over num_train_epochs. Give one of the two.",
    )
    num_train_epochs: Annotated[int | None, BeforeValidator(zero_is_none), MayChange()] = Field(
        default=None, ge=1, description="Passes over all clips."
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        description="Peak learning rate. prodigy finds the rate itself and multiplies it by this: 1.",
    )
    lora_plus_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+: learning rate of the adapters' B matrices over that of A; its authors use 16.",
    )
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "adafactor", "prodigy", "adamw_schedulefree", "muon"],
        synonyms(OPTIMIZER_NAMES, log=True),
        Instead(otherwise="adamw"),
    ] = Field(
        default="adamw",
        description="SimpleTuner's names are mapped to these, with a line in the log. adamw_8bit, prodigy "
        "and adamw_schedulefree need the extra longcat-tune[optim]; muon steps matrices, and anything else "
        "by AdamW.",
    )
    adam_beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Decay of the mean of gradients; unused by adafactor and muon's matrices.",
    )
    adam_beta2: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Decay of the mean of squared gradients; unused by adafactor and muon's matrices.",
    )
    adam_weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled weight decay of any optimizer."
    )
    adam_epsilon: float = Field(
        default=1e-8,
        gt=0,
        description="Guard against division by zero; unused by adafactor and muon's matrices.",
    )
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
        Instead({"sine": "cosine_with_restarts"}),
    ] = Field(
        default="constant_with_warmup",
        description="Course of the learning rate; all but the first two fall from the end of the warmup to "
        "lr_end at the last step, so that another length of a resumed run has to be accepted "
        "(accept_changes).",
    )
    lr_warmup_steps: int = Field(
        default=0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    lr_end: float = Field(default=4e-7, ge=0, description="Learning rate that a falling schedule ends with.")
    lr_num_cycles: int = Field(
        default=1, ge=1, description="How often cosine_with_restarts falls; unused by the others."
    )
    lr_power: float = Field(
        default=0.8, gt=0, description="Power of polynomial; 1 is linear; unused by the others."
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Bound of the gradient, by grad_clip_method; 0: none."
    )
    grad_clip_method: Literal["norm", "value"] = Field(
        default="norm", description="norm: the whole gradient is scaled down; value: each element is cut."
    )
    gradient_checkpointing: Annotated[bool, MayChange()] = Field(
        default=True, description="Recompute activations in the backward pass instead of keeping them."
    )
    gradient_checkpointing_interval: Annotated[int, MayChange()] = Field(
        default=1, ge=1, description="Recompute every n-th block only; 1 takes least memory."
    )
    gradient_checkpointing_offload: Annotated[bool, MayChange()] = Field(
        default=False, description="Keep the inputs of recomputed blocks in host memory."
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="Seed of everything that is drawn.")
    use_ema: bool = Field(
        default=False,
        description="Keep an exponential moving average of the adapter, saved beside it in every checkpoint.",
    )
    ema_decay: float = Field(
        default=0.995,
        gt=0,
        lt=1,
        description="Decay of the average per step; lower during the first steps: (1 + n) / (10 + n).",
    )
    ema_validation: Annotated[Literal["none", "ema_only", "comparison"], MayChange()] = Field(
        default="none", description="Render without the average, with it only, or both."
    )
    resume_from_checkpoint: Annotated[
        str | None,
        BeforeValidator(resume_choice),
        PlainSerializer(lambda value: value or "none", when_used="json"),
        MayChange(),
    ] = Field(
        default="latest",
        description="latest: the newest complete checkpoint of output_dir, if any; a folder: that "
        "checkpoint, or the newest that this run has made from it; none: start afresh.",
    )
    accept_changes: Annotated[bool, MayChange()] = Field(
        default=False,
        description="Go on from a checkpoint although keys that decide what is learned, or the clips, have "
        "changed since; the differences are shown in any case.",
    )

    @property
    def schedule_falls(self) -> bool:
        """Whether the learning rate ends lower than it was."""
        return self.lr_scheduler not in CONSTANT_SCHEDULES

    @model_validator(mode="after")
    def _prodigy_finds_the_rate(self) -> Self:
        if self.optimizer != "prodigy":
            return self
        if self.learning_rate < PRODIGY_LEAST_RATE:
            raise ValueError(
                f"learning_rate ({self.learning_rate:g}) must be at least {PRODIGY_LEAST_RATE} with "
                "optimizer prodigy, which finds the rate itself and multiplies it by this; set it to 1"
            )
        if self.lora_plus_ratio is not None:
            raise ValueError(
                f"lora_plus_ratio ({self.lora_plus_ratio:g}) needs two learning rates, but optimizer prodigy "
                "finds one for all weights; remove it or choose adamw"
            )
        return self

    @model_validator(mode="after")
    def _schedule_free_averages(self) -> Self:
        if self.optimizer != "adamw_schedulefree":
            return self
        if self.schedule_falls:
            raise ValueError(
                f"lr_scheduler ({self.lr_scheduler}) must be constant or constant_with_warmup with "
                "optimizer adamw_schedulefree, which averages the weights in place of a falling rate; change "
                "one of them"
            )
        if self.use_ema:
            raise ValueError(
                "use_ema (true) must be false with optimizer adamw_schedulefree, which saves and renders an "
                "average of the weights already; remove it or choose adamw"
            )
        if not self.adam_beta1:
            raise ValueError(
                "adam_beta1 (0) must be above 0 with optimizer adamw_schedulefree; remove it for 0.9"
            )
        return self

    @model_validator(mode="after")
    def _schedule_falls(self) -> Self:
        if self.schedule_falls and self.lr_end > self.learning_rate:
            raise ValueError(
                f"lr_end ({self.lr_end:g}) must be at most learning_rate ({self.learning_rate:g}); lower it"
            )
        return self

    @model_validator(mode="after")
    def _average_is_kept(self) -> Self:
        if self.ema_validation != "none" and not self.use_ema:
            raise ValueError(
                f"ema_validation ({self.ema_validation}) has no average to render with, as use_ema is false; "
                "set use_ema to true or remove it"
            )
        return self

    @model_validator(mode="after")
    def _boundaries_belong_to_recomputed_blocks(self) -> Self:
        if self.gradient_checkpointing_offload and not self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing_offload (true) has nothing to keep in host memory while "
                "gradient_checkpointing is false; set gradient_checkpointing to true, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _warmup_needs_its_schedule(self) -> Self:
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ValueError(
                f"lr_warmup_steps ({self.lr_warmup_steps}) has no effect with lr_scheduler constant; "
                "set lr_scheduler to constant_with_warmup"
            )
        return self
