"""Chance that falls the same way every time: what is drawn depends on the seed and on names alone.

So a clip keeps its lot whichever other clips there are, on every machine and in every run. Knows nothing of
clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from struct import Struct

_WORDS = Struct("<16I")


def lot(seed: int, *names: str) -> bytes:
    """64 bytes that stand for the names; whoever has the smallest comes first."""
    return blake2b("/".join((str(seed), *names)).encode()).digest()


def shares(seed: int, *names: str) -> Iterator[float]:
    """Numbers from 0 to below 1, evenly spread, without an end."""
    for block in count():
        for word in _WORDS.unpack(lot(seed, *names, str(block))):
            yield word / 2**32
