"""Captions in one table for a whole dataset: csv, jsonl, parquet. The one door to pyarrow.

Knows rows and columns, nothing of the files that they are about.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from longcat_tune.config.datasets import CaptionTable
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.errors import ConfigError

if TYPE_CHECKING:
    from _csv import Reader

TableFormat = Literal["parquet", "csv", "jsonl"]

_ROWS_AT_ONCE = 4096
"""Rows of a parquet file that are Python objects at the same time."""


class _Row(NamedTuple):
    """The cells of one row that matter, as the table holds them.

    Attributes:
        place: `line 3` or `row 3`, for messages.
        name: of the file.
        caption: text, a list of texts, or nothing.
        fallback: the same, taken where the caption is empty; an empty list without such a column.
    """

    place: str
    name: object
    caption: object
    fallback: object


def read_table(table_format: TableFormat, table: CaptionTable) -> dict[str, tuple[str, ...]]:
    """Read the captions by file; several rows of one file, or a list in one, are several captions.

    Args:
        table_format: how the table is written.
        table: where it is, and its columns.

    Returns:
        For each name in the filename column, as `file_key` writes it, its captions; none where all are empty.

    Raises:
        UnusableFileError: the table is not there, cannot be read, lacks a column or has a row that is wrong.
        ConfigError: pyarrow is needed and not installed.
    """
    readers = {"parquet": _parquet_rows, "csv": _csv_rows, "jsonl": _jsonl_rows}
    try:
        return _by_file(readers[table_format](table), table)
    except FileNotFoundError as error:
        remedy = (
            "correct caption_table.path; it is looked for in instance_data_dir, beside the data file and in "
            "the working folder"
        )
        raise UnusableFileError(table.path, "is not there", remedy) from error
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise UnusableFileError(table.path, reason, "make it a readable file") from error
    except UnicodeDecodeError as error:
        raise UnusableFileError(table.path, "is not UTF-8", "save the table as UTF-8") from error


def file_key(name: str) -> str:
    """A path inside a dataset as tables and datasets can agree on it: forward slashes, composed letters."""
    # A table from Windows has backslashes, a listing of macOS decomposed letters.
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _by_file(rows: Iterable[_Row], table: CaptionTable) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        name = _name(row, table)
        captions = _texts(row.caption, row, table) or _texts(row.fallback, row, table)
        before = found.get(name)
        found[name] = captions if before is None else tuple(dict.fromkeys((*before, *captions)))
    return found


def _name(row: _Row, table: CaptionTable) -> str:
    match row.name:
        case str(name) if name:
            return file_key(name)
        case int(number) if not isinstance(number, bool):
            return str(number)
        case None | "":
            reason = f"has no {table.filename_column} in {row.place}"
            raise UnusableFileError(table.path, reason, "write the name of the file there or remove the row")
        case other:
            reason = f"has a {table.filename_column} in {row.place} that is not text: {other!r}"
            raise UnusableFileError(table.path, reason, "write the name of the file there")


def _texts(cell: object, row: _Row, table: CaptionTable) -> tuple[str, ...]:
    """The captions in a cell, without empty ones."""
    match cell:
        case None:
            return ()
        case str(text):
            text = text.strip()
            _require_characters(text, row, table)
            return (text,) if text else ()
        case list(texts):
            return tuple(one for text in texts for one in _texts(text, row, table))
        case other:
            reason = f"has a caption in {row.place} that is neither text nor a list of texts: {other!r}"
            raise UnusableFileError(table.path, reason, "write text there")


def _require_characters(text: str, row: _Row, table: CaptionTable) -> None:
    """JSON can hold halves of characters, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"has a caption in {row.place} with half a character in it: {text!r}"
        raise UnusableFileError(table.path, reason, "write the caption anew") from error


def _csv_rows(table: CaptionTable) -> Iterator[_Row]:
    with table.path.open(encoding="utf-8-sig", newline="") as file:
        # Without strict, a forgotten quote would swallow the rest of the table in silence.
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            yield from _csv_cells(reader, table)
        except csv.Error as error:
            reason = f"cannot be read as csv in line {reader.line_num} ({error})"
            remedy = 'put captions with commas, quotes or line ends between double quotes, and write " as ""'
            raise UnusableFileError(table.path, reason, remedy) from error


def _csv_cells(reader: Reader, table: CaptionTable) -> Iterator[_Row]:
    header = next(reader, [])
    _require_columns(header, _columns(table), table)
    name, caption, *fallback = (header.index(column) for column in _columns(table).values())
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            # A caption with commas and without quotes would lose all but its first words.
            reason = f"has {len(cells)} cells in line {reader.line_num} and {len(header)} in its header"
            raise UnusableFileError(table.path, reason, "put captions with commas between double quotes")
        yield _Row(f"line {reader.line_num}", cells[name], cells[caption], [cells[one] for one in fallback])


def _jsonl_rows(table: CaptionTable) -> Iterator[_Row]:
    wanted = _columns(table)
    there: dict[str, None] = {}
    with table.path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            row = _json_object(line, place, table)
            if table.filename_column not in row:
                _require_columns(row, wanted, table, place)
            there |= dict.fromkeys(row)
            name, caption, *fallback = (row.get(column) for column in wanted.values())
            yield _Row(place, name, caption, fallback)
    _require_columns(there, wanted, table)


def _json_object(line: str, place: str, table: CaptionTable) -> Mapping[str, object]:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        reason = f"cannot be read as JSON in {place} ({error.msg} at column {error.colno})"
        raise UnusableFileError(table.path, reason, "write one JSON object a line") from error
    if not isinstance(row, dict):
        raise UnusableFileError(table.path, f"has no object in {place}", "write one JSON object a line")
    return row


def _parquet_rows(table: CaptionTable) -> Iterator[_Row]:
    try:
        from pyarrow import ArrowException, default_memory_pool
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError(
            "caption_strategy (parquet) needs pyarrow, which is not installed; "
            "pip install 'longcat-tune[parquet]', or write the table as csv or jsonl"
        ) from error
    try:
        with ParquetFile(table.path) as file:
            _require_columns(file.schema_arrow.names, _columns(table), table)
            columns = list(_columns(table).values())
            # Threads cost more than they save here: 30 MB and a tenth of a second at 100,000 rows.
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)
            cells = ([batch.column(column).to_pylist() for column in columns] for batch in batches)
            rows = chain.from_iterable(zip(*columns_of_batch, strict=True) for columns_of_batch in cells)
            for number, (name, caption, *fallback) in enumerate(rows, start=1):
                yield _Row(f"row {number}", name, caption, fallback)
    except ArrowException as error:
        reason = f"cannot be read as parquet ({error})"
        remedy = "write the table again, or set caption_strategy to csv or jsonl if it is one"
        raise UnusableFileError(table.path, reason, remedy) from error
    # What was decoded lives on as Python's own text; the pool would keep 30 MB of it for every 100,000 rows.
    default_memory_pool().release_unused()


def _columns(table: CaptionTable) -> dict[str, str]:
    """The columns to read, by the key of caption_table that names them."""
    columns = {"filename_column": table.filename_column, "caption_column": table.caption_column}
    if table.fallback_caption_column is not None:
        columns["fallback_caption_column"] = table.fallback_caption_column
    return columns


def _require_columns(
    there: Collection[str], wanted: Mapping[str, str], table: CaptionTable, place: str = ""
) -> None:
    if not there:
        raise UnusableFileError(table.path, "is empty", "write the captions there or correct the path")
    for key, column in wanted.items():
        if column not in there:
            where = f" in {place}" if place else ""
            reason = f"has no column {column}{where}; its columns are {', '.join(there)}"
            raise UnusableFileError(table.path, reason, f"set caption_table.{key} to one of them")
