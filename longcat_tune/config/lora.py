"""Section lora: the size of the adapter, the layers it sits on, the files it is written to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longcat_tune.config.schema import Later, Section
from longcat_tune.config.values import as_list, synonyms

LoraTargetName = Literal["attention", "attention+ffn", "all-linear"]
LoraFormat = Literal["peft", "official", "comfyui"]


def check_lora_target(value: object) -> object:
    """Accept one of the names, or regular expressions as a list or as JSON text.

    Raises:
        ValueError: for another text, an empty list or an expression that cannot be read.
    """
    names = ("attention", "attention+ffn", "all-linear")
    if value in names:
        return value
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be one of {', '.join(names)}, or a list of regular expressions")
    for pattern in value:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"holds an expression that cannot be read, {pattern!r} ({error}); correct it"
            ) from error
    return value


class LoraSection(Section):
    """The adapter that is trained."""

    lora_rank: int = Field(
        default=8, ge=1, le=1024, description="Rank of every adapted layer; 4 to 8 for little memory."
    )
    lora_alpha: float = Field(
        default_factory=lambda values: float(values["lora_rank"]),
        gt=0,
        description="Scale: the adapter counts alpha / rank. null: the rank.",
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training."
    )
    lora_target: Annotated[LoraTargetName | tuple[str, ...], BeforeValidator(check_lora_target)] = Field(
        default="attention",
        description="attention: the 240 attention projections of the blocks; attention+ffn adds the "
        "feed-forward layers; all-linear adds the modulation and final layers; or a list of regular "
        "expressions for module names. Never the patch embedding.",
    )
    use_dora: Annotated[bool, Later("DoRA comes with the training stage")] = Field(
        default=False, description="Weight-decomposed adapters."
    )
    init_lora: Annotated[Path | None, Later("starting from an adapter comes with the training stage")] = (
        Field(default=None, description="LoRA file to start from.")
    )
    lora_format: Annotated[
        tuple[Annotated[LoraFormat, synonyms({"diffusers": "peft"}, log=True)], ...],
        BeforeValidator(as_list),
        Later("other LoRA files come with the training stage"),
    ] = Field(default=("peft",), min_length=1, description="Files written at every save, one per format.")
