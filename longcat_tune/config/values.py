"""Rules of single values that several keys share: frame counts, frame sizes, lists, other spellings.

Pure functions on what a file or the command line gave; a broken rule is a ValueError that names the remedy.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BeforeValidator, ValidationInfo

from longcat_tune.types import TEMPORAL_STRIDE

SIZE_STEP = 16
"""Pixels per transformer token: VAE stride 8, patches of 2 x 2 latents."""

logger = logging.getLogger(__name__)


class FrameSize(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        """`480x832`."""
        return f"{self.width}x{self.height}"

    @property
    def described(self) -> str:
        """`480 wide x 832 high (portrait)`, for the log."""
        shape = (
            "square" if self.width == self.height else "portrait" if self.width < self.height else "landscape"
        )
        return f"{self.width} wide x {self.height} high ({shape})"


def parse_frame_size(text: str) -> FrameSize:
    """Read `WIDTHxHEIGHT`.

    Raises:
        ValueError: for another form, or when a side is not divisible by 16.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(
            "must be WIDTHxHEIGHT in pixels; for example 480x832 (portrait) or 832x480 (landscape)"
        )
    size = FrameSize(int(match[1]), int(match[2]))
    if size.width % SIZE_STEP or size.height % SIZE_STEP or 0 in size:
        nearest = dict.fromkeys((_down(size), _up(size)))
        remedy = " or ".join(str(one) for one in nearest)
        raise ValueError(f"must have a width and a height divisible by {SIZE_STEP}; use {remedy}")
    return size


def _down(size: FrameSize) -> FrameSize:
    return FrameSize(*(max(SIZE_STEP, side // SIZE_STEP * SIZE_STEP) for side in size))


def _up(size: FrameSize) -> FrameSize:
    return FrameSize(*(max(SIZE_STEP, -(-side // SIZE_STEP) * SIZE_STEP) for side in size))


def frame_sizes(value: object) -> object:
    """Read one or several sizes: text, text with commas, or a list.

    Raises:
        ValueError: names the size that is wrong.
    """
    parts = as_list(value)
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError("must be WIDTHxHEIGHT or a list of them; for example 480x832")
    return tuple(_one_frame_size(part, alone=len(parts) == 1) for part in parts)


def _one_frame_size(part: object, *, alone: bool) -> FrameSize:
    if isinstance(part, FrameSize):
        return part
    try:
        return parse_frame_size(str(part))
    except ValueError as error:
        if alone:
            raise
        raise ValueError(f"{part} {error}") from error


def check_num_frames(value: object) -> object:
    """Accept only 4k + 1 frames.

    Raises:
        ValueError: with the two nearest counts.
    """
    frames = (
        int(value) if isinstance(value, (int, str)) and re.fullmatch(r"\d+", str(value).strip()) else None
    )
    if frames is None or frames % TEMPORAL_STRIDE == 1:
        return value
    below = (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    remedy = f"use {below} or {below + TEMPORAL_STRIDE}" if below > 0 else "use 1 or 5"
    raise ValueError(f"must be {TEMPORAL_STRIDE}k + 1; {remedy}")


def check_id(value: str) -> str:
    """Accept only names that are safe as a folder.

    Raises:
        ValueError: with a name that is.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        return value
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", value).lstrip(".-") or "clips"
    raise ValueError(f"may hold letters, digits, '.', '_' and '-' only, not '.' or '-' first; use {safe}")


def as_list(value: object) -> object:
    """Read text as a list: JSON when it starts with a bracket, else parts between commas.

    Raises:
        ValueError: for JSON that cannot be read.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'is not a JSON list ({error}); write it like ["a", "b"]') from error
    return [part.strip() for part in value.split(",") if part.strip()]


def zero_is_none(value: object) -> object:
    """Read 0 as "not given", as SimpleTuner's configs write it."""
    # Not a set: a list or an object has no hash, and is for the schema to refuse.
    return None if value in (0, "0") else value


def word_of_bool(value: object) -> object:
    """Read true and false as the words of a choice that has more than these two."""
    return str(value).lower() if isinstance(value, bool) else value


def synonyms(names: Mapping[str, str], *, log: bool = False) -> BeforeValidator:
    """Accept other spellings of a value.

    Args:
        names: for each spelling, the value.
        log: say so, because the other spelling may have meant a little more.
    """

    def translate(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str) or value not in names:
            return value
        if log:
            logger.info("%s: %s is taken as %s", info.field_name, value, names[value])
        return names[value]

    return BeforeValidator(translate)
