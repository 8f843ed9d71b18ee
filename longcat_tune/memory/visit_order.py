"""Which of several things will be needed next, learned from the order in which they were needed before.

Knows numbers; a wrong guess costs time, never a wrong result.
"""

from __future__ import annotations

from collections import deque

LENGTHS = (16, 2)
"""Visits that a guess looks back at. The longer tells recomputing a block's layers from computing them the
first time; the shorter is enough for whole blocks, and learns sooner."""

Visit = tuple[int, bool]


class VisitOrder:
    """Guesses the next visit: what came after the same visits the last time, else straight on."""

    def __init__(self) -> None:
        self._recent: deque[Visit] = deque(maxlen=max(LENGTHS))
        self._after: dict[tuple[Visit, ...], int] = {}

    def visit(self, number: int, *, recording: bool) -> int:
        """Note a visit, and guess the number of the next; it may lie outside of what there is.

        Args:
            number: what is visited now; not what was visited last.
            recording: whether a graph is recorded: what follows the last block depends on it.
        """
        for known in self._contexts():
            self._after[known] = number
        before = self._recent[-1][0] if self._recent else number - 1
        self._recent.append((number, recording))
        for known in self._contexts():
            if known in self._after:
                return self._after[known]
        return number - 1 if number == before - 1 else number + 1

    def _contexts(self) -> list[tuple[Visit, ...]]:
        recent = tuple(self._recent)
        return [recent[-length:] for length in LENGTHS if length <= len(recent)]
