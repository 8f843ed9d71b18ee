"""The captions of one dataset's files, by its strategy; a missing one is never an empty prompt in silence.

Knows where captions are written, nothing of prompts' cleaning or encoding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from longcat_tune.config.datasets import CaptionTable, DatasetEntry
from longcat_tune.data.caption_shuffle import with_variants
from longcat_tune.data.caption_tables import file_key, read_table
from longcat_tune.data.listing import Kind, without_extension
from longcat_tune.data.naming import some
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import Notice

EMPTY_PROMPT = ""
READ_AT_ONCE = 1 << 16
"""Bytes; a file that gives fewer has no more."""

_OTHERWISE = 'set empty_caption to "use" for the empty prompt'
_OTHER_STRATEGIES = f'{_OTHERWISE}, or caption_strategy to "filename", "instanceprompt" or null'
_NAMED = 3
"""How many files a notice names."""


class NoCaptionError(UnusableFileError):
    """A file whose caption is missing or empty, which empty_caption may allow."""


class Captions:
    """Finds the captions of each file of one dataset, and remembers what its owner should know.

    Attributes:
        entry: the dataset.
        seed: of the variants that caption_shuffle makes.
    """

    def __init__(self, entry: DatasetEntry, *, seed: int, rows: dict[str, tuple[str, ...]]) -> None:
        self.entry = entry
        self.seed = seed
        self._rows = rows
        self._find = self._finder()
        self._shuffle = (
            entry.caption_shuffle if entry.caption_shuffle and entry.caption_shuffle.enable else None
        )
        self._without: set[str] = set()

    @classmethod
    def of_dataset(cls, entry: DatasetEntry, *, seed: int) -> Captions:
        """Read the dataset's table, where its strategy has one.

        Args:
            entry: the dataset; `caption_strategy` null means the empty prompt.
            seed: the run's; caption_shuffle may have its own.

        Raises:
            UnusableFileError: the table cannot be used; its path is the table's.
            ConfigError: the table's format needs a package that is not installed.
        """
        shuffle = entry.caption_shuffle
        if shuffle is not None and shuffle.seed is not None:
            seed = shuffle.seed
        rows = {}
        if entry.caption_strategy in {"parquet", "csv", "jsonl"}:
            rows = read_table(entry.caption_strategy, _table(entry))
        return cls(entry, seed=seed, rows=rows)

    def of(self, path: Path, name: str, *, kind: Kind) -> tuple[str, ...]:
        """Find the captions of one file; training draws one of them each time.

        Args:
            path: the video or image, or the folder of numbered pictures.
            name: its path inside the dataset, with forward slashes.
            kind: which of them it is.

        Raises:
            UnusableFileError: there is no caption where the strategy looks for it, and empty_caption is
                error; or it cannot be read.
        """
        try:
            captions = self._find(path, name, kind)
        except NoCaptionError:
            if self.entry.empty_caption == "error":
                raise
            self._without.add(name)
            return (EMPTY_PROMPT,)
        if self._shuffle is None:
            return captions
        return with_variants(captions, self._shuffle, seed=self.seed, name=name)

    def notices(self, names: Collection[str]) -> tuple[Notice, ...]:
        """What is allowed and may not be meant: rows of the table for no file, files without a caption.

        Args:
            names: of every file of the dataset, usable or not.
        """
        found = []
        keys = {file_key(name) for name in names} if self._rows else set()
        keys |= {key.rpartition(".")[0] for key in keys if key not in self._rows}
        if unused := self._rows.keys() - keys:
            table = _table(self.entry)
            fact = f"{table.path} has captions of files that are not there: {_counted(unused)}"
            remedy = f"correct its column {table.filename_column} or remove the rows"
            found.append(Notice(self.entry.id, fact, remedy))
        if self._without:
            fact = f"files without a caption, which use the empty prompt: {_counted(self._without)}"
            remedy = 'write their captions, or set empty_caption to "error" to refuse them'
            found.append(Notice(self.entry.id, fact, remedy))
        return tuple(found)

    def _finder(self) -> Callable[[Path, str, Kind], tuple[str, ...]]:
        """The strategy as a function of path, name and kind."""
        match self.entry.caption_strategy:
            case None:
                nothing = (EMPTY_PROMPT,)
                return lambda _path, _name, _kind: nothing
            case "instanceprompt":
                assert self.entry.instance_prompt is not None
                same = (self.entry.instance_prompt,)
                return lambda _path, _name, _kind: same
            case "filename":
                return lambda path, _name, kind: _name_as_words(path, kind)
            case "textfile":
                split = not self.entry.disable_multiline_split
                return lambda path, _name, kind: _text_file_captions(path, kind, split=split)
            case "parquet" | "csv" | "jsonl":
                return self._in_table

    def _in_table(self, path: Path, name: str, kind: Kind) -> tuple[str, ...]:
        key = file_key(name)
        stem = without_extension(key, kind=kind)
        captions = self._rows.get(key, self._rows.get(stem))
        if captions:
            return captions
        table = _table(self.entry)
        if captions is None:
            tried = " or ".join(dict.fromkeys((key, stem)))
            reason = f"has no caption: no {table.filename_column} in {table.path} is {tried}"
            raise NoCaptionError(path, reason, f"add a row, or {_OTHERWISE}")
        columns = table.caption_column
        if table.fallback_caption_column is not None:
            columns += f" and {table.fallback_caption_column}"
        reason = f"has no caption: {columns} of its row in {table.path} is empty"
        raise NoCaptionError(path, reason, f"write it there, or {_OTHERWISE}")


def _table(entry: DatasetEntry) -> CaptionTable:
    assert entry.caption_table is not None
    return entry.caption_table


def _counted(names: Iterable[str]) -> str:
    """How many, and a few of them."""
    every = sorted(names)
    return f"{len(every)} ({some(every, _NAMED)})"


def _name_as_words(path: Path, kind: Kind) -> tuple[str, ...]:
    words = " ".join(without_extension(path.name, kind=kind).replace("_", " ").split())
    if not words:
        raise NoCaptionError(path, "has no words in its name", f"rename it to what it shows, or {_OTHERWISE}")
    return (words,)


def _text_file_captions(path: Path, kind: Kind, *, split: bool) -> tuple[str, ...]:
    text_path = f"{without_extension(os.fspath(path), kind=kind)}.txt"
    try:
        text = _bytes_of(text_path).decode("utf-8-sig")
    except FileNotFoundError as error:
        reason = f"has no caption: {text_path} does not exist"
        raise NoCaptionError(path, reason, f"write its caption there, {_OTHER_STRATEGIES}") from error
    except UnicodeDecodeError as error:
        reason = f"has a caption that is not UTF-8: {text_path}"
        raise UnusableFileError(path, reason, "save the text as UTF-8") from error
    except OSError as error:
        reason = f"has a caption that cannot be read: {text_path} ({error.strerror})"
        raise UnusableFileError(path, reason, "make it a readable text file") from error
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    units = text.split("\n") if split else (text,)
    captions = tuple(caption for unit in units if (caption := unit.strip()))
    if not captions:
        reason = f"has no caption: {text_path} is empty"
        raise NoCaptionError(path, reason, f"write its caption there, {_OTHER_STRATEGIES}")
    return captions


def _bytes_of(path: str) -> bytes:
    """Read a small file. Once per clip: strings and plain calls take a quarter of the time of pathlib's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, READ_AT_ONCE):
            parts.append(part)
            if len(part) < READ_AT_ONCE:
                break
    finally:
        os.close(descriptor)
    return b"".join(parts)
