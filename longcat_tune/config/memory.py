"""Section memory: which weights leave the device between uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from longcat_tune.config.schema import Later, Section

_LATER = Later("it comes with the memory stage")


class MemorySection(Section):
    """What is kept in host memory or on disk and streamed."""

    enable_group_offload: Annotated[bool, _LATER] = Field(
        default=False, description="Keep all transformer blocks in host memory and stream them in groups."
    )
    group_offload_type: Annotated[Literal["block_level", "leaf_level"], _LATER] = Field(
        default="block_level", description="Stream whole blocks, or single layers."
    )
    group_offload_blocks_per_group: Annotated[int, _LATER] = Field(
        default=1, ge=1, description="Blocks streamed together under block_level."
    )
    group_offload_use_stream: Annotated[bool, _LATER] = Field(
        default=True, description="Fetch the next group while this one computes."
    )
    group_offload_to_disk_path: Annotated[Path | None, _LATER] = Field(
        default=None, description="Folder to keep the offloaded weights in, instead of host memory."
    )
    musubi_blocks_to_swap: Annotated[int, _LATER] = Field(
        default=0,
        ge=0,
        le=48,
        description="Number of transformer blocks kept off the device and streamed; try 4 to 8.",
    )
    musubi_block_swap_device: Annotated[str, _LATER] = Field(
        default="cpu", description="Where they are kept."
    )
    feed_forward_chunk_size: Annotated[int | None, _LATER] = Field(
        default=None,
        ge=256,
        description="Tokens that a feed-forward layer works on at a time: less memory, the same result. "
        "null: all at once.",
    )
    memory_plan: Annotated[Literal["manual", "auto"], _LATER] = Field(
        default="manual", description="auto: choose the offloading that makes the run fit the device."
    )
