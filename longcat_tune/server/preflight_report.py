"""What a report of `check` means for somebody who is about to start a run; pure.

Chooses and adds up; the words for it are the template's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longcat_tune.config.run import keys

TRAINING = "training "
"""How the parts of the memory plan begin that are steps on a bucket."""
PROBLEMS_SHOWN = 50
GIB = 2**30

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ShownProblem:
    """One thing that keeps the run from starting.

    Attributes:
        key: of the config that it is about, which the form has a field for; empty: none.
        subject: the dataset and the file that it is about.
        reason: what is wrong.
        remedy: what to do.
    """

    key: str
    subject: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Length:
    """How long the run is.

    Attributes:
        steps_per_epoch: on average.
        steps: in all; None where the config does not say.
        seconds: of one step on average; None where the device's speed is not known.
    """

    steps_per_epoch: float
    steps: int | None
    seconds: float | None

    @property
    def total(self) -> float | None:
        """Seconds of all steps."""
        return None if self.seconds is None or self.steps is None else self.seconds * self.steps


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """What one part of a run needs at its fullest, in GiB; `device` is None where there is no card."""

    name: str
    device: float | None
    host: float


def length_of(report: Report) -> Length:
    """Steps, and their time by the parts of the memory plan; each bucket counts by its share of the steps."""
    seconds = {part["name"].removeprefix(TRAINING): part["seconds"] for part in _parts(report)}
    shares: dict[str, float] = {}
    for dataset in report.get("datasets", []):
        for row in dataset["buckets"]:
            shares[row["bucket"]] = shares.get(row["bucket"], 0.0) + sum(row["steps_per_epoch"])
    timed = [(share, seconds.get(name)) for name, share in shares.items() if share]
    known = [(share, time) for share, time in timed if time is not None]
    mean = None
    if known and len(known) == len(timed):
        mean = sum(share * time for share, time in known) / sum(share for share, _ in known)
    return Length(report.get("steps_per_epoch", 0), report.get("max_steps"), mean)


def memory_rows(report: Report) -> list[MemoryRow]:
    """One for every part of the run."""
    memory = report.get("memory") or {}
    card = memory.get("device_free") is not None
    return [
        MemoryRow(
            part["name"],
            part["device"]["bytes"] / GIB if card else None,
            part["host"]["bytes"] / GIB,
        )
        for part in _parts(report)
    ]


def memory_peak(report: Report) -> tuple[float, float] | None:
    """What the fullest part needs of the card, or of main memory without one; and what is free, in GiB."""
    memory = report.get("memory")
    if memory is None:
        return None
    where = "host" if memory["device_free"] is None else "device"
    return max(part[where]["bytes"] for part in memory["parts"]) / GIB, memory[f"{where}_free"] / GIB


def shown_problems(report: Report, clean: Callable[[str], str]) -> list[ShownProblem]:
    """The first problems, in the report's order.

    Args:
        report: of the check.
        clean: takes out what the reader may not see.
    """
    found = []
    for problem in report.get("problems", [])[:PROBLEMS_SHOWN]:
        subject = ": ".join(clean(part) for part in (problem["dataset"], problem["file"]) if part)
        key = "" if subject else _key_of(problem["reason"])
        found.append(ShownProblem(key, subject, clean(problem["reason"]), clean(problem["remedy"])))
    return found


def _parts(report: Report) -> list[dict[str, Any]]:
    memory = report.get("memory")
    return [] if memory is None else memory["parts"]


def _key_of(reason: str) -> str:
    """The key that a sentence begins with, maybe after the name of the file."""
    word = re.match(r"(?:config\.json: )?([a-z_0-9]+)\b", reason)
    return word[1] if word and word[1] in keys() else ""
