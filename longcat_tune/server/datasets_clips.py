"""The clips of one dataset as its page shows them: what the index and the check say, put together.

Knows the rows of both reports; starts nothing and writes nothing.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.server.thumbnails import Index, Pictured
from longcat_tune.server.workspace import Workspace

State = Literal["used", "refused", "idle", "unknown"]

SHOWN: Mapping[str, tuple[str, ...]] = {
    "video": ("video", "sequence"),
    "image": ("image",),
    "conditioning": ("image",),
    "eval": ("video", "image"),
    "text_embeds": (),
}
"""Kinds of files that each dataset type takes."""
IN_TABLES = frozenset({"parquet", "csv", "jsonl"})


@dataclass(frozen=True, slots=True)
class Told:
    """Why something cannot be used, and what to do about it."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Part:
    """One training clip that a file becomes.

    Attributes:
        bucket: its size, or size and length.
        frames: its length.
        first: its first frame, where that is not the file's own.
    """

    bucket: str
    frames: int
    first: int


@dataclass(frozen=True, slots=True)
class Card:
    """One file of a dataset.

    Attributes:
        picture: what the index knows of it.
        state: idle: usable and not used, as a start image without a clip; unknown: not checked yet.
        parts: what it becomes; several under clip_selection all.
        captions: that training draws from.
        refusals: why it is not used.
        start: path of its start image, empty where there is none.
        fps: of a video; 0 where that is not known.
    """

    picture: Pictured
    state: State
    parts: tuple[Part, ...]
    captions: tuple[str, ...]
    refusals: tuple[Told, ...]
    start: str
    fps: float


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a check by file, its paths as the index writes them.

    Attributes:
        datasets: the counts of each dataset by id.
        rows: training clips by dataset and file.
        refusals: by dataset and file.
        faults: of datasets as a whole by id, of the data file under the empty text.
        notices: by dataset.
        starts: start images that some clip uses.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    rows: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
    refusals: Mapping[tuple[str, str], Sequence[Told]]
    faults: Mapping[str, Sequence[Told]]
    notices: Mapping[str, Sequence[Told]]
    starts: frozenset[str]


def read_report(report: Mapping[str, Any], folders: Mapping[str, Path], told: Paths) -> Report:
    """Sort a report by file.

    Args:
        report: of `check --json --clips`.
        folders: of each dataset by id, resolved.
        told: makes texts fit for people.
    """
    rows = defaultdict(list)
    for row in report.get("clips", ()):
        rows[row["dataset"], _real(row["file"])].append(row)
    refusals: dict[tuple[str, str], list[Told]] = defaultdict(list)
    faults: dict[str, list[Told]] = defaultdict(list)
    for problem in report["problems"]:
        dataset, file = problem["dataset"], problem["file"]
        words = Told(told(problem["reason"]), told(problem["remedy"]))
        if dataset is None:
            faults[""] += [words] if _of_data_file(words, report) else []
        elif file is None or _real(file) == str(folders.get(dataset)):
            faults[dataset].append(words)
        else:
            refusals[dataset, _real(file)].append(words)
    notices = defaultdict(list)
    for notice in report["notices"]:
        notices[notice["dataset"]].append(Told(told(notice["fact"]), told(notice["remedy"])))
    counts = {dataset["id"]: dataset for dataset in (*report["datasets"], *report.get("start_images", ()))}
    starts = frozenset(_real(row["start_image"]) for row in report.get("clips", ()) if row["start_image"])
    return Report(counts, rows, refusals, faults, notices, starts)


def _of_data_file(words: Told, report: Mapping[str, Any]) -> bool:
    """Whether a problem of the run as a whole comes from its data file, not from the small config."""
    return not report["datasets"] or words.reason.startswith("data_backend_config")


class Paths:
    """Makes texts of the command line fit for people: paths as the workspace shows them.

    Args:
        workspace: for its names.
        folders: of each dataset: as the entry has it, and the real one.
    """

    def __init__(self, workspace: Workspace, folders: Sequence[tuple[Path, Path]]) -> None:
        self._workspace = workspace
        self._folders = [(str(written), str(real)) for written, real in folders if written != real]

    def __call__(self, text: str) -> str:
        """The text without absolute paths."""
        for written, real in self._folders:
            text = text.replace(written, real)
        return self._workspace.without_paths(text)


def cards(entry: DatasetEntry, index: Index | None, report: Report | None) -> list[Card]:
    """Every file of a dataset, by name.

    Args:
        entry: of the dataset.
        index: of its folder; None: nothing is known yet.
        report: of the last check; None: there was none.
    """
    taken = SHOWN[entry.dataset_type]
    pictures = index.clips if index is not None else ()
    return [_card(entry, picture, report) for picture in pictures if picture.kind in taken]


def _card(entry: DatasetEntry, picture: Pictured, report: Report | None) -> Card:
    file = str(picture.file)
    unreadable = (Told(picture.reason, picture.remedy or ""),) if picture.reason is not None else ()
    if report is None:
        return Card(picture, "refused" if unreadable else "unknown", (), (), unreadable, "", 0.0)
    rows = report.rows.get((entry.id, file), ())
    refusals = tuple(report.refusals.get((entry.id, file), ())) or ((), unreadable)[not rows]
    parts = tuple(Part(row["bucket"], row["frames"], row["first_frames"][0]) for row in rows)
    first: Mapping[str, Any] = rows[0] if rows else {}
    return Card(
        picture=picture,
        state=_state(entry, file, bool(refusals), report),
        parts=parts,
        captions=tuple(first.get("captions", ())),
        refusals=refusals,
        start=_real(first["start_image"]) if first.get("start_image") else "",
        fps=first.get("fps", 0.0),
    )


def _state(entry: DatasetEntry, file: str, refused: bool, report: Report) -> State:
    if refused:
        return "refused"
    used = file in report.starts if entry.dataset_type == "conditioning" else (entry.id, file) in report.rows
    if used:
        return "used"
    # A file that came after the check was not judged by it; what was left out on demand was.
    counted = report.datasets.get(entry.id, {})
    return "idle" if counted.get("left_out") or counted.get("without_clip") else "unknown"


def _real(file: str) -> str:
    """A path of a report as the index writes it: its folder resolved, its own name kept."""
    folder, _, name = file.rpartition("/")
    return f"{os.path.realpath(folder)}/{name}"
