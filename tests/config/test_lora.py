"""Keys of section lora that have rules of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from longcat_tune.config.lora import LoraSection
from tests.config.helpers import config_message, config_of


def test_ranks_by_expression_come_from_the_file_and_from_the_command_line(tmp_path: Path) -> None:
    pattern = {r"blocks\.\d+\.attn\.qkv": 16}
    assert config_of(tmp_path, {"lora_rank_pattern": pattern}).lora.lora_rank_pattern == pattern
    text = r'{"blocks\\.\\d+\\.attn\\.qkv": 16}'
    assert config_of(tmp_path, lora_rank_pattern=text).lora.lora_rank_pattern == pattern
    assert config_of(tmp_path).lora.lora_rank_pattern == {}


def test_the_scale_is_the_rank_and_a_refused_rank_is_told_once() -> None:
    assert LoraSection(lora_rank=16).lora_alpha == 16.0
    with pytest.raises(ValidationError, match="lora_rank"):
        LoraSection(lora_rank=0)
    # As pydantic 2.10 and 2.11 call it when the rank was refused.
    factory = cast(
        Callable[[dict[str, object]], float], LoraSection.model_fields["lora_alpha"].default_factory
    )
    assert factory({}) > 0


def test_formats_are_kept_in_order_and_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, lora_format="comfyui,diffusers,official,peft")
    assert config.lora.lora_format == ("comfyui", "peft", "official")


def test_a_plain_run_has_none_of_it(tmp_path: Path) -> None:
    lora = config_of(tmp_path).lora
    assert (lora.use_dora, lora.use_rslora, lora.init_lora, lora.lora_format) == (
        False,
        False,
        None,
        ("peft",),
    )
    assert config_of(tmp_path, {"init_lora": "a.safetensors"}).lora.init_lora == Path("a.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank_pattern": {"attn.(": 4}}, "holds an expression that cannot be read, 'attn.(' (missing"),
        ({"lora_rank_pattern": {"attn": 0}}, "lora_rank_pattern.attn (0) must be at least 1; remove it"),
        (
            {"lora_rank_pattern": "attn"},
            r"is not a JSON object (Expecting value: line 1 column 1 (char 0)); write",
        ),
        ({"lora_rank_pattern": [4]}, "lora_rank_pattern ([4]) must be an object in braces; remove it"),
        (
            {"use_dora": True, "lora_format": ["peft", "comfyui"]},
            "use_dora (true) cannot be written as comfyui: its programs know no magnitudes; set lora_format",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, values: dict, message: str) -> None:
    assert message in config_message(tmp_path, values)
