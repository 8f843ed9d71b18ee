"""Rules of single values that several keys share: frame counts, sizes, lists.

Pure functions on what a file or the command line gave; a broken rule is a ValueError that names the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BeforeValidator

from longcat_tune.types import TEMPORAL_STRIDE


def check_num_frames(value: object) -> object:
    """Accept only 4k + 1 frames.

    Raises:
        ValueError: with the two nearest counts.
    """
    frames = int(value) if isinstance(value, (int, str)) and str(value).strip().isdigit() else None
    if frames is None or frames % TEMPORAL_STRIDE == 1:
        return value
    below = (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    nearest = f"{max(1, below)} or {below + TEMPORAL_STRIDE}" if frames > 0 else "5 or more"
    raise ValueError(f"must be 4k + 1; use {nearest}")


def one_or_many(value: object) -> object:
    """Read a single text as a list of one."""
    return [value] if isinstance(value, str) else value


def synonyms(names: Mapping[str, str]) -> BeforeValidator:
    """Accept other spellings of a value."""
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)
