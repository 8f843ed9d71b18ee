"""Section output: where results go, how often, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from longcat_tune.config.schema import Instead, Later, Section

_HUB_LATER = Later("uploading comes with the training stage")


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
    push_to_hub: Annotated[bool, _HUB_LATER] = Field(default=False, description="Upload the LoRA to the hub.")
    hub_model_id: Annotated[str | None, _HUB_LATER] = Field(
        default=None, description="Repository to upload to."
    )
