"""Section memory: which weights leave the device between uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longcat_tune.config.problems import shown
from longcat_tune.config.schema import Section


class MemorySection(Section):
    """What is kept in host memory or on disk and streamed."""

    enable_group_offload: bool = Field(
        default=False,
        description="Keep the weights of all transformer blocks in host memory and stream them in groups.",
    )
    group_offload_type: Literal["block_level", "leaf_level"] = Field(
        default="block_level",
        description="Stream whole blocks, or single layers: these take less of the device and hide less of "
        "the copying.",
    )
    group_offload_blocks_per_group: int = Field(
        default=1, ge=1, description="Blocks streamed together under block_level."
    )
    group_offload_use_stream: bool = Field(
        default=True,
        description="Fetch the next group while this one computes, from page-locked memory. false: one group "
        "on the device at a time, and computation waits for every copy.",
    )
    group_offload_to_disk_path: Path | None = Field(
        default=None,
        description="Folder to keep the offloaded weights in, instead of host memory; slower. Its files are "
        "gone when the run ends.",
    )
    musubi_blocks_to_swap: int = Field(
        default=0,
        ge=0,
        le=48,
        description="Number of transformer blocks, spread over the depth, whose weights are kept off the "
        "device and streamed; try 4 to 8.",
    )
    musubi_block_swap_device: Literal["cpu"] = Field(default="cpu", description="Where they are kept.")
    feed_forward_chunk_size: int | None = Field(
        default=None,
        ge=256,
        description="Tokens that a feed-forward layer works on at a time: less memory, the same result. "
        "null: all at once.",
    )
    memory_plan: Literal["manual", "auto"] = Field(
        default="manual",
        description="auto: stream the blocks that the device has no room for, then keep the inputs of blocks "
        "in host memory, then cut the feed-forward layers; what other keys ask for stays.",
    )

    @model_validator(mode="after")
    def _one_way_of_streaming(self) -> Self:
        if self.enable_group_offload and self.musubi_blocks_to_swap:
            raise ValueError(
                f"musubi_blocks_to_swap ({self.musubi_blocks_to_swap}) streams some blocks, but "
                "enable_group_offload (true) streams all of them; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_offloaded(self) -> Self:
        for key, value in self._group_settings().items():
            if not self.enable_group_offload and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} ({shown(value)}) has no effect while enable_group_offload is false; set "
                    "enable_group_offload to true, or remove it"
                )
        return self

    @model_validator(mode="after")
    def _leaves_have_no_blocks(self) -> Self:
        blocks = self.group_offload_blocks_per_group
        if self.group_offload_type == "leaf_level" and blocks > 1:
            raise ValueError(
                f"group_offload_blocks_per_group ({blocks}) has no effect with group_offload_type "
                "leaf_level, which streams single layers; remove it, or set group_offload_type to block_level"
            )
        return self

    def _group_settings(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.model_dump(mode="json").items()
            if key.startswith("group_offload_")
        }
