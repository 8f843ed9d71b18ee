"""Keys of section memory, and those of training that belong to them, contradict each other with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.helpers import config_message, config_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"enable_group_offload": True, "musubi_blocks_to_swap": 8},
            (
                "musubi_blocks_to_swap (8) streams some blocks, but enable_group_offload (true) streams all "
                "of them; remove one of the two"
            ),
        ),
        (
            {"group_offload_to_disk_path": "weights"},
            (
                "group_offload_to_disk_path (weights) has no effect while enable_group_offload is false; set "
                "enable_group_offload to true, or remove it"
            ),
        ),
        (
            {"group_offload_use_stream": False},
            (
                "group_offload_use_stream (false) has no effect while enable_group_offload is false; set "
                "enable_group_offload to true, or remove it"
            ),
        ),
        (
            {
                "enable_group_offload": True,
                "group_offload_type": "leaf_level",
                "group_offload_blocks_per_group": 2,
            },
            (
                "group_offload_blocks_per_group (2) has no effect with group_offload_type leaf_level, which "
                "streams single layers; remove it, or set group_offload_type to block_level"
            ),
        ),
        (
            {"gradient_checkpointing": False, "gradient_checkpointing_offload": True},
            (
                "gradient_checkpointing_offload (true) has nothing to keep in host memory while "
                "gradient_checkpointing is false; set gradient_checkpointing to true, or remove it"
            ),
        ),
        (
            {"musubi_block_swap_device": "cuda:1"},
            "musubi_block_swap_device (cuda:1) must be cpu; remove it for the default, cpu",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, given: dict, message: str) -> None:
    assert config_message(tmp_path, given) == f"DIR/config.json: {message}"


@pytest.mark.parametrize(
    "given",
    [
        {"enable_group_offload": True, "group_offload_blocks_per_group": 4},
        {"enable_group_offload": True, "group_offload_type": "leaf_level"},
        {"enable_group_offload": True, "group_offload_to_disk_path": "w", "group_offload_use_stream": False},
        {"group_offload_type": "block_level", "group_offload_blocks_per_group": 1},
        {"musubi_blocks_to_swap": 8, "musubi_block_swap_device": "cpu"},
        {"gradient_checkpointing_offload": True, "gradient_checkpointing_interval": 2},
    ],
)
def test_what_goes_together_is_accepted(tmp_path: Path, given: dict) -> None:
    config = config_of(tmp_path, given).flat()
    assert {key: config[key] for key in given} == given
