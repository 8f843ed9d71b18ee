"""Long lists in messages: the first few names, and how many more there are; of whatever is named."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 5


def some(names: Iterable[str], most: int = NAMED, *, between: str = ", ", noun: str = "") -> str:
    """Name the first few: `a, b, c, 7 more`.

    Args:
        names: all of them.
        most: how many are named.
        between: stands between two of them.
        noun: says of what there are more.
    """
    every = list(names)
    more = [f"{len(every) - most} more {noun}".rstrip()] if len(every) > most else []
    return between.join(every[:most] + more)
