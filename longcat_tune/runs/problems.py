"""What stops a run, collected from everywhere and told at once: which file, why, what to do.

Knows how problems are shown to people and to machines, not how they are found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat_tune.errors import ConfigError, DataError, UserError
from longcat_tune.log import output
from longcat_tune.types import Refusal

SHOWN_OF_A_KIND = 50
"""Lines per dataset and kind of reason; beyond them a list is no longer read."""

PATHS = re.compile(r"(\S*[/\\]\S*\s*)+")
NUMBERS = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a user must change.

    Attributes:
        reason: what is wrong; with a file it continues a sentence that begins with its path.
        remedy: what to do about it; empty where the reason says it all.
        file: the file or folder, if it is about one.
        dataset: id of the entry, if it is about one.
    """

    reason: str
    remedy: str
    file: Path | None = None
    dataset: str | None = None

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> Problem:
        """A file or folder of a dataset that cannot be used."""
        return cls(refusal.reason, refusal.remedy, refusal.path, refusal.dataset_id)

    @classmethod
    def of_error(cls, error: UserError) -> Problem:
        """What one part of the preflight raised; its message ends with the remedy."""
        return cls(*reason_and_remedy(str(error)))

    @property
    def text(self) -> str:
        """One line: dataset, file, reason, remedy."""
        subject = f"{self.file} {self.reason}" if self.file is not None else self.reason
        told = f"{subject}; {self.remedy}" if self.remedy else subject
        return one_line(f"{self.dataset}: {told}") if self.dataset is not None else told

    @property
    def kind(self) -> str:
        """The same for problems that differ only in their file's name and in numbers."""
        reason = self.reason
        if self.file is not None:
            # By itself, because a name with spaces would leave words behind.
            reason = reason.replace(f"{os.sep}{self.file.stem}", os.sep)
        return NUMBERS.sub("#", PATHS.sub("/", reason))

    def as_json(self) -> dict[str, str | None]:
        """For machines; all four keys are always there."""
        return {
            "file": None if self.file is None else str(self.file),
            "reason": self.reason,
            "remedy": self.remedy,
            "dataset": self.dataset,
        }


def reason_and_remedy(message: str) -> tuple[str, str]:
    """Cut an error's message where its remedy begins; the remedy is empty when it has none."""
    reason, mark, remedy = message.rpartition("; ")
    return (reason, remedy) if mark else (remedy, "")


def one_line(text: str) -> str:
    """A text about files, whose names may hold line breaks."""
    return text.replace("\n", "\\n")


def config_problems(error: ConfigError) -> list[Problem]:
    """What is wrong with a config file, one by one; the loader tells all of it in one message."""
    head, *listed = str(error).split("\n  ")
    return [Problem(*reason_and_remedy(message)) for message in listed or [head]]


@contextmanager
def config_problems_shown(*, as_json: bool) -> Iterator[None]:
    """Give machines a report also where a config is so wrong that there is no plan; then let the error pass.

    Args:
        as_json: whether a report is asked for; people are told by the error alone.
    """
    try:
        yield
    except ConfigError as error:
        if as_json:
            problems = [problem.as_json() for problem in config_problems(error)]
            show_json({"datasets": [], "notices": [], "problems": problems})
        raise


def show_json(report: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write a report for machines to standard output."""
    # Past the console's layout, which takes a second for ten thousand lines; ASCII suits every terminal.
    output.file.write(json.dumps(report, indent=2) + "\n")


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """One line per problem, those of a kind together: the first ones, and how many more there are."""
    kinds: dict[tuple[str | None, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.dataset, problem.kind), []).append(problem)
    lines = []
    for (dataset, _), same in kinds.items():
        lines += [problem.text for problem in same[:SHOWN_OF_A_KIND]]
        if len(same) > SHOWN_OF_A_KIND:
            more = f"and {len(same) - SHOWN_OF_A_KIND:,} more of this kind; `check --json` lists all"
            lines.append(more if dataset is None else f"{dataset}: {more}")
    return lines


@contextmanager
def collected(errors: list[UserError]) -> Iterator[None]:
    """Keep what a user can fix for later, so that it does not hide what comes after the block."""
    try:
        yield
    except UserError as error:
        errors.append(error)


def raise_problems(problems: Sequence[Problem], *, told: bool = False) -> None:
    """Stop because of problems, if there are any.

    Args:
        problems: all of them.
        told: they have been shown already.

    Raises:
        DataError: says how many there are and, unless they were told, what each is.
    """
    if not problems:
        return
    if told:
        raise DataError(f"{counted(len(problems))}; each is listed above with its remedy")
    head = f"{counted(len(problems))}; `longcat-tune check` shows the whole picture:"
    raise DataError("\n  ".join([head, *problem_lines(problems)]))


def counted(count: int, noun: str = "problem") -> str:
    """`1 problem`, `12 problems`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
