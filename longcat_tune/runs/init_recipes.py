"""What the files that `init` writes start from, for each model: lengths, sizes, pace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from longcat_tune.config.miniature import MINIATURE
from longcat_tune.data.buckets import bucket_size

Flavour = Literal["final", "tiny"]


@dataclass(frozen=True, slots=True)
class Size:
    """One way to bring clips to a size.

    Attributes:
        resolution: length of the shorter edge in pixels.
        bucket_table: the sizes of the model's authors, where they are used instead.
    """

    resolution: int
    bucket_table: Literal["official_480p"] | None = None

    def of(self, width: int, height: int) -> tuple[int, int]:
        """What a clip of this width and height is brought to."""
        return bucket_size(
            width, height, resolution=self.resolution, resolution_type="pixel", table=self.bucket_table
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one model's files start from.

    Attributes:
        about: the model in words.
        num_frames: of the longest clips and renders.
        sizes: to choose from, the best first.
        batch_size: clips per step.
        batch_why: the reason.
        learning_rate: that learns within the steps.
        how: further keys of how it learns, each with its value and the reason.
        fewest_steps: of a run on a handful of clips.
        most_steps: of a run on thousands.
        every: steps between renders, and between checkpoints.
        render_steps: denoising steps of a render.
    """

    about: str
    num_frames: int
    sizes: tuple[Size, ...]
    batch_size: int
    batch_why: str
    learning_rate: float
    how: Mapping[str, tuple[str | bool, str]]
    fewest_steps: int
    most_steps: int
    every: int
    render_steps: int


RECIPES: dict[Flavour, Recipe] = {
    "final": Recipe(
        about="LongCat-Video 13.6B",
        num_frames=93,
        # Below 480p the grid: its 512 pixels for 480 would enlarge what the table takes as it is.
        sizes=(Size(480, "official_480p"), Size(448), Size(384), Size(320), Size(256)),
        batch_size=1,
        batch_why="one clip at a time takes least memory",
        learning_rate=1e-4,
        how={"gradient_checkpointing": (True, "")},
        fewest_steps=1000,
        most_steps=5000,
        every=250,
        render_steps=40,
    ),
    "tiny": Recipe(
        about="the embedded miniature: the same code, small enough for any machine",
        num_frames=17,
        # What it was made on; it draws nothing at other sizes.
        sizes=(Size(64),),
        batch_size=MINIATURE["train_batch_size"],
        batch_why="four clips at once make steadier steps than one, and fit anywhere",
        learning_rate=MINIATURE["learning_rate"],
        how={
            "gradient_checkpointing": (
                MINIATURE["gradient_checkpointing"],
                "its activations are small: to compute them again costs time only",
            ),
            "lr_scheduler": ("cosine", "steps grow small towards the end, so that nothing is overdone"),
            "lora_target": (MINIATURE["lora_target"], "what is new must be drawn, too, not only attended to"),
            "flow_use_uniform_schedule": (
                MINIATURE["flow_use_uniform_schedule"],
                "all noise levels alike: outlines form late, motions early",
            ),
        },
        fewest_steps=1000,
        most_steps=3600,
        every=400,
        render_steps=25,
    ),
}
