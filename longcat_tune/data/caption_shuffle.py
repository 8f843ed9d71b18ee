"""Variants of tag captions in another order, the same for the same seed, clip and caption.

Works on text alone; which captions there are is captions' business.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

from longcat_tune.config.datasets import CaptionShuffle

_BETWEEN = {"comma": re.compile(r","), "space": re.compile(r"\s+"), "period": re.compile(r"\.(?:\s+|$)")}
"""A period counts at the end of a sentence only: 2.5 is one number."""
_JOINED_WITH = {"comma": ", ", "space": " ", "period": ". "}


def with_variants(
    captions: Sequence[str], shuffle: CaptionShuffle, *, seed: int, name: str
) -> tuple[str, ...]:
    """Put variants after each caption, or in its place without include_original.

    A caption with fewer than two tags that may move, or whose tags are all alike, stays alone.

    Args:
        captions: of one clip.
        shuffle: how many variants, and of what.
        seed: of the orders.
        name: the clip's, so that clips with one caption differ.
    """
    every: list[str] = []
    for caption in captions:
        variants = _variants(caption, shuffle, random.Random(f"{seed}\n{name}\n{caption}"))
        if shuffle.include_original or not variants:
            every.append(caption)
        every += variants
    return tuple(dict.fromkeys(every))


def _variants(caption: str, shuffle: CaptionShuffle, generator: random.Random) -> list[str]:
    """Other orders of the tags, no two alike; as many as asked for, or as there are."""
    parts = (part.strip() for part in _BETWEEN[shuffle.split_on].split(caption))
    tags = [part for part in parts if part]
    first, movable = tags[: shuffle.position_start], tags[shuffle.position_start :]
    end = "." if shuffle.split_on == "period" and caption.endswith(".") else ""
    wanted = min(shuffle.count, _orders(movable) - 1)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < wanted:
        # Not random.shuffle, whose draws may change between versions of Python; random() never does.
        order = tuple(sorted(movable, key=lambda _: generator.random()))
        if order != tuple(movable):
            found[order] = None
    return [_JOINED_WITH[shuffle.split_on].join([*first, *order]) + end for order in found]


def _orders(tags: Sequence[str]) -> int:
    """How many different sequences these tags can stand in."""
    alike = (math.factorial(count) for count in Counter(tags).values())
    return math.factorial(len(tags)) // math.prod(alike)
