"""Where the captions of a folder of clips are: in a table, in text files, or only in the files' names.

Tries the strategies on the files themselves and takes the first that finds most captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.captions import Captions, NoCaptionError
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.errors import ConfigError
from longcat_tune.types import ClipRecord

TABLE_STEMS = ("captions", "metadata")
TABLE_FORMATS = ("jsonl", "csv", "parquet")
FILENAME_COLUMNS = (
    "filename",
    "file_name",
    "file",
    "path",
    "file_path",
    "video",
    "video_path",
    "media_path",
    "name",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description")
FROM_NAMES = "filename"
ENOUGH = 0.5
"""Share of the files that a strategy must find captions for; below it, it is not what the folder goes by."""


@dataclass(frozen=True, slots=True)
class CaptionChoice:
    """How the files of a folder get their captions.

    Attributes:
        keys: of the dataset entry.
        why: the comment on them.
        found: the first caption of each file that has one, by the file's name.
        missing: files without a caption.
    """

    keys: Mapping[str, Any]
    why: str
    found: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def written(self) -> bool:
        """Whether somebody wrote them."""
        return bool(self.keys["caption_strategy"] != FROM_NAMES)


def choose_captions(folder: Path, records: Sequence[ClipRecord]) -> CaptionChoice:
    """Find out how the files of a folder are captioned.

    Args:
        folder: of the clips.
        records: at least one.
    """
    for choice in _written(folder, records):
        if len(choice.found) >= ENOUGH * len(records):
            return choice
    return _tried(
        folder,
        records,
        {"caption_strategy": FROM_NAMES},
        "no captions were found, so each file's name is its caption; better: write what a clip shows into a "
        ".txt of the same name beside it, and set this to textfile",
    )


def _written(folder: Path, records: Sequence[ClipRecord]) -> Iterator[CaptionChoice]:
    """What there is in tables and text files, tables first."""
    for stem, kind in product(TABLE_STEMS, TABLE_FORMATS):
        table = folder / f"{stem}.{kind}"
        if table.is_file():
            yield from _in_table(folder, table, kind, records)
    why = "a .txt of the same name lies beside each clip; every line of it is one caption"
    yield _tried(folder, records, {"caption_strategy": "textfile"}, why)


def _in_table(folder: Path, table: Path, kind: str, records: Sequence[ClipRecord]) -> Iterator[CaptionChoice]:
    """Read a table by the first columns that it has; nothing when it cannot be read at all."""
    for filename, caption in product(FILENAME_COLUMNS, CAPTION_COLUMNS):
        columns = {"path": table.name, "filename_column": filename, "caption_column": caption}
        keys = {"caption_strategy": kind, "caption_table": columns}
        try:
            yield _tried(folder, records, keys, f"{table.name} holds the captions")
        except UnusableFileError:
            continue
        except ConfigError:
            # Its format needs a package that is not installed.
            return
        return


def _tried(folder: Path, records: Sequence[ClipRecord], keys: Mapping[str, Any], why: str) -> CaptionChoice:
    """Look for every file's caption by one strategy.

    Raises:
        UnusableFileError: the table lacks a column or cannot be read.
        ConfigError: the table's format needs a package that is not installed.
    """
    values = dict(keys)
    if "caption_table" in values:
        values["caption_table"] = {
            **values["caption_table"],
            "path": folder / values["caption_table"]["path"],
        }
    captions = Captions.of_dataset(DatasetEntry(id="clips", instance_data_dir=folder, **values), seed=0)
    found: dict[str, str] = {}
    missing = []
    for record in records:
        try:
            found[record.name] = captions.of(record.path, record.name, kind=record.kind)[0]
        except NoCaptionError:
            missing.append(record.name)
        except UnusableFileError:
            # A text that is there and cannot be read is for its owner to mend: `check` names it.
            continue
    return CaptionChoice(keys, why, found, tuple(missing))
