"""Section lora: the size of the adapter, the layers it sits on, the files it is written to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from longcat_tune.config.schema import MayChange, Section
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
    _check_expressions(value)
    return value


def check_rank_pattern(value: object) -> object:
    """Accept ranks by regular expression, as an object or as JSON text.

    Raises:
        ValueError: for other text, or an expression that cannot be read.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'is not a JSON object ({error}); write it like {{"blocks\\\\.\\\\d+\\\\.attn\\\\.qkv": 16}}'
            ) from error
    if isinstance(value, dict):
        _check_expressions(value)
    return value


def _check_expressions(patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"holds an expression that cannot be read, {pattern!r} ({error}); correct it"
            ) from error


def _rank_of(values: Mapping[str, Any]) -> float:
    """The default of lora_alpha.

    Before pydantic 2.12 it is asked for even where the rank was refused, which is then missing here: the
    section is refused for that, so any scale will do.
    """
    return float(values.get("lora_rank", 1))


def _once(formats: tuple[LoraFormat, ...]) -> tuple[LoraFormat, ...]:
    return tuple(dict.fromkeys(formats))


class LoraSection(Section):
    """The adapter that is trained."""

    lora_rank: int = Field(
        default=8, ge=1, le=1024, description="Rank of every adapted layer; 4 to 8 for little memory."
    )
    lora_alpha: float = Field(
        default_factory=_rank_of,
        gt=0,
        description="Scale: the adapter counts alpha / lora_rank. null: the rank.",
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
    lora_rank_pattern: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=1024)]], BeforeValidator(check_rank_pattern)
    ] = Field(
        default={},
        description="Other ranks for some layers, by regular expressions for whole module names; the first "
        "that matches counts. Their scale stays that of the others.",
    )
    use_rslora: bool = Field(
        default=False,
        description="Rank-stabilised scale: the adapter counts alpha / sqrt(rank), by each layer's own rank.",
    )
    use_dora: bool = Field(
        default=False,
        description="Weight-decomposed adapters: the length of every weight row is trained apart. Slower, "
        "and only the format peft can hold them.",
    )
    init_lora: Annotated[Path | None, MayChange()] = Field(
        default=None,
        description="LoRA file of any format to start from. Ranks and scale stay this config's; its ranks "
        "must not be larger. Ignored when a run goes on from a checkpoint.",
    )
    lora_format: Annotated[
        tuple[Annotated[LoraFormat, synonyms({"diffusers": "peft"}, log=True)], ...],
        BeforeValidator(as_list),
        AfterValidator(_once),
        MayChange(),
    ] = Field(
        default=("peft",),
        min_length=1,
        description="Files written at every save, one per format; see docs/lora_formats.md.",
    )

    @model_validator(mode="after")
    def _formats_can_hold_it(self) -> Self:
        others = [form for form in self.lora_format if form != "peft"]
        if self.use_dora and others:
            raise ValueError(
                f"use_dora (true) cannot be written as {others[0]}: its programs know no magnitudes; set "
                "lora_format to peft, or use_dora to false"
            )
        return self
