"""Section output: where results go, how often, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longcat_tune.config.schema import Instead, Section


class OutputSection(Section):
    """Folders, checkpoints, trackers."""

    output_dir: Path = Field(
        default=Path("longcat-tune-results"),
        description="Folder of everything a run leaves behind, relative to the working folder.",
    )
    checkpoint_step_interval: int = Field(
        default=500, ge=1, description="Save a checkpoint every so many steps."
    )
    checkpoints_total_limit: int = Field(
        default=5, ge=1, description="Checkpoints kept; the oldest are removed."
    )
    report_to: Annotated[
        Literal["none", "tensorboard", "wandb"],
        Instead(
            {
                "all": "tensorboard",
                "simpletuner": "none",
                "swanlab": "wandb",
                "comet_ml": "wandb",
                "custom-tracker": "none",
            }
        ),
    ] = Field(
        default="none",
        description="Tracker that follows the run, besides events.jsonl; needs the extra "
        "longcat-tune[trackers]. tensorboard writes to output_dir/tensorboard.",
    )
    tracker_project_name: str | None = Field(
        default=None, description="Project of wandb that the run belongs to; null: longcat-tune."
    )
    tracker_run_name: str | None = Field(
        default=None, description="Name of the run in wandb; null: output_dir's."
    )
    push_to_hub: bool = Field(
        default=False,
        description="Upload the last LoRA to the hub, in every lora_format, once a run is finished.",
    )
    hub_model_id: str | None = Field(
        default=None,
        description="Repository that push_to_hub uploads to, as you/my-lora; a new one is made private.",
    )

    @model_validator(mode="after")
    def _upload_has_a_place(self) -> Self:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError(
                "hub_model_id (null) must name a repository when push_to_hub is true; set it to you/my-lora"
            )
        return self
