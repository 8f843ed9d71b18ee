"""What a moment of a run needs in memory, term by term; the arithmetic of the terms is in `budget_*`.

Knows bytes and names; nothing of models, of a config or of what a term is needed for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Where = Literal["device", "host"]
GIB = 2**30
SPARE = 0.05
"""Share of a memory that a plan leaves free: what allocators round and tear, and what arithmetic forgets."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that takes memory.

    Attributes:
        name: of the thing.
        num_bytes: that it takes.
        where: in the device's memory or in the host's.
        source: how the number comes about.
        reserve: held beside torch's tensors, so that torch's own peak does not show it.
        of_card: of a card's own libraries; there is no such thing where a CPU computes.
    """

    name: str
    num_bytes: int
    where: Where
    source: str
    reserve: bool = False
    of_card: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of a run at which its memory may be fullest.

    Attributes:
        name: what happens then.
        terms: everything that is in memory then.
    """

    name: str
    terms: tuple[Term, ...]

    def num_bytes(self, where: Where, *, reserve: bool = True) -> int:
        """What is in one of the two memories.

        Args:
            where: which.
            reserve: count what torch's own peak does not show, too.
        """
        return sum(
            term.num_bytes for term in self.terms if term.where == where and (reserve or not term.reserve)
        )

    def on_one_memory(self) -> Moment:
        """The same where device and host share one memory, as on a CPU, which holds nothing in reserve."""
        kept = (term for term in self.terms if not (term.reserve or term.of_card))
        shared = (replace(term, where="host") for term in kept)
        return replace(self, terms=tuple(shared))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a part of a run needs: the fullest of its moments decides, for each memory by itself.

    Attributes:
        moments: at least one.
    """

    moments: tuple[Moment, ...]

    def fullest(self, where: Where) -> Moment:
        """The moment that needs most of one of the two memories."""
        return max(self.moments, key=lambda moment: moment.num_bytes(where))

    def peak(self, where: Where, *, reserve: bool = True) -> int:
        """Bytes of the fullest moment; the arguments as for `Moment.num_bytes`."""
        return max(moment.num_bytes(where, reserve=reserve) for moment in self.moments)

    def on_one_memory(self) -> Budget:
        """The same where device and host share one memory."""
        return Budget(tuple(moment.on_one_memory() for moment in self.moments))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a machine has to give.

    Attributes:
        device: bytes of its accelerator that are free; None: it computes in the host's memory.
        host: bytes of its main memory that are free, those that this process holds already included.
    """

    device: int | None
    host: int

    def of(self, where: Where) -> int | None:
        """Bytes of one of the two memories; None when there is no such memory."""
        return self.device if where == "device" else self.host


@dataclass(frozen=True, slots=True)
class Shortage:
    """A memory that does not suffice.

    Attributes:
        where: which.
        needed: bytes at the fullest moment.
        available: bytes, of which a share is to stay free.
        moment: the fullest.
    """

    where: Where
    needed: int
    available: int
    moment: Moment


def usable(available: int) -> int:
    """Bytes of a memory that a plan may fill."""
    return int(available * (1 - SPARE))


def shortages(budgets: Iterable[Budget], capacity: Capacity) -> tuple[Shortage, ...]:
    """The memories that do not suffice, each at its fullest moment, the device's first.

    Args:
        budgets: of the parts of a run, one after the other.
        capacity: of the machine.
    """
    parts = list(budgets) if capacity.device is not None else [part.on_one_memory() for part in budgets]
    found = []
    for where in ("device", "host"):
        available = capacity.of(where)
        if available is None or not parts:
            continue
        fullest = max((part.fullest(where) for part in parts), key=lambda moment: moment.num_bytes(where))
        needed = fullest.num_bytes(where)
        if needed > usable(available):
            found.append(Shortage(where, needed, available, fullest))
    return tuple(found)


def gib(num_bytes: int) -> str:
    """`12.3 GiB`; small sizes in MiB."""
    if num_bytes < GIB:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / GIB:.1f} GiB"
