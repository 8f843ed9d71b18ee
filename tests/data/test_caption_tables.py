"""Captions in csv, jsonl and parquet: what is found, and the whole message of every table that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from longcat_tune.config.datasets import CaptionTable, DatasetEntry
from longcat_tune.data.caption_tables import read_table
from longcat_tune.data.captions import Captions
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.errors import ConfigError
from longcat_tune.types import Notice

Rows = Sequence[Mapping[str, object]]
FORMATS = ("csv", "jsonl", "parquet")


def written(folder: Path, table_format: str, rows: Rows) -> Path:
    """A table with these rows, all with the columns of the first."""
    path = folder / f"captions.{table_format}"
    if table_format == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    elif table_format == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    else:
        lines = [rows[0], *(row.values() for row in rows)]
        quoted = (",".join(f'"{"" if cell is None else cell}"' for cell in line) for line in lines)
        path.write_text("\n".join(quoted), encoding="utf-8")
    return path


def captions(folder: Path, path: Path, *, empty_caption: str = "error", **table) -> Captions:
    entry = DatasetEntry(
        id="clips",
        instance_data_dir=folder,
        caption_strategy=path.suffix.removeprefix("."),
        caption_table={"path": path, **table},
        empty_caption=empty_caption,
    )
    return Captions.of_dataset(entry, seed=0)


def of(several: Captions, name: str) -> tuple[str, ...]:
    path = several.entry.instance_data_dir / name
    return several.of(path, name, kind="sequence" if path.is_dir() else "video")


def message_of(folder: Path, path: Path, **table) -> str:
    with pytest.raises(UnusableFileError) as caught:
        captions(folder, path, **table)
    assert caught.value.path == path
    return str(caught.value).replace(f"{folder}/", "")


def text_message(folder: Path, name: str, text: str, **table) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return message_of(folder, folder / name, **table)


@pytest.mark.parametrize("table_format", FORMATS)
def test_files_are_found_with_their_extension_or_without(tmp_path, table_format):
    rows = [
        {"filename": "a.mp4", "caption": "Of a.mp4."},
        {"filename": "a", "caption": "Of any other a."},
        {"filename": "sub\\größer.v2", "caption": "Größer, höher."},
        {"filename": "./b.mp4", "caption": " Of b. \n"},
        {"filename": "a.v2", "caption": "Of a folder."},
    ]
    several = captions(tmp_path, written(tmp_path, table_format, rows))
    (tmp_path / "a.v2").mkdir()
    (tmp_path / "a.v3").mkdir()
    assert of(several, "a.mp4") == ("Of a.mp4.",)
    assert of(several, "a.mov") == ("Of any other a.",)
    assert of(several, "sub/gro\u0308ßer.v2.mp4") == ("Größer, höher.",)
    assert of(several, "b.mp4") == ("Of b.",)
    assert of(several, "a.v2") == ("Of a folder.",)
    with pytest.raises(UnusableFileError, match=rf"no filename in .*\.{table_format} is a\.v3;"):
        of(several, "a.v3")


@pytest.mark.parametrize("table_format", FORMATS)
def test_several_rows_of_a_file_are_several_captions(tmp_path, table_format):
    rows = [{"filename": "a.mp4", "caption": text} for text in ("One.", "Two.", "One.", "")]
    assert of(captions(tmp_path, written(tmp_path, table_format, rows)), "a.mp4") == ("One.", "Two.")


@pytest.mark.parametrize("table_format", ["jsonl", "parquet"])
def test_a_list_is_several_captions_and_numbers_are_names(tmp_path, table_format):
    rows = [{"id": 12, "texts": ["One.", " ", "Two.", None]}, {"id": 13, "texts": ["Three."]}]
    path = written(tmp_path, table_format, rows)
    several = captions(tmp_path, path, filename_column="id", caption_column="texts")
    assert of(several, "12.mp4") == ("One.", "Two.")
    assert of(several, "13.mp4") == ("Three.",)


@pytest.mark.parametrize("table_format", FORMATS)
def test_another_column_stands_in_for_an_empty_caption(tmp_path, table_format):
    rows = [
        {"filename": "a.mp4", "caption": "Long.", "short": "a"},
        {"filename": "b.mp4", "caption": None, "short": "b"},
        {"filename": "c.mp4", "caption": " ", "short": None},
    ]
    path = written(tmp_path, table_format, rows)
    several = captions(tmp_path, path, fallback_caption_column="short")
    assert (of(several, "a.mp4"), of(several, "b.mp4")) == (("Long.",), ("b",))
    with pytest.raises(UnusableFileError) as caught:
        of(several, "c.mp4")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        f"c.mp4 has no caption: caption and short of its row in captions.{table_format} is empty; write it "
        'there, or set empty_caption to "use" for the empty prompt'
    )


def test_a_file_without_a_row_is_refused_or_uses_the_empty_prompt(tmp_path):
    path = written(tmp_path, "csv", [{"filename": "a.mp4", "caption": "One."}])
    with pytest.raises(UnusableFileError) as caught:
        of(captions(tmp_path, path), "sub/b.mp4")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "sub/b.mp4 has no caption: no filename in captions.csv is sub/b.mp4 or sub/b; add a row, or set "
        'empty_caption to "use" for the empty prompt'
    )
    several = captions(tmp_path, path, empty_caption="use")
    assert of(several, "sub/b.mp4") == ("",)


def test_rows_without_a_file_and_files_without_a_row_are_told(tmp_path):
    rows = [{"filename": name, "caption": "One."} for name in ("clips/a.mp4", "b.mp4", "b", "c")]
    several = captions(tmp_path, written(tmp_path, "csv", rows), empty_caption="use")
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    for name in names:
        of(several, name)
    assert several.notices(names) == (
        Notice(
            "clips",
            f"{tmp_path}/captions.csv has captions of files that are not there: 2 (b, clips/a.mp4)",
            "correct its column filename or remove the rows",
        ),
        Notice(
            "clips",
            "files without a caption, which use the empty prompt: 2 (a.mp4, d.mp4)",
            'write their captions, or set empty_caption to "error" to refuse them',
        ),
    )


def test_csv_may_have_a_mark_quotes_line_ends_and_empty_lines(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes(
        b'\xef\xbb\xbffilename, caption\r\na.mp4, "A ""red"" ball,\r\nbouncing."\r\n\r\nb.mp4,B\r\n'
    )
    several = captions(tmp_path, path)
    assert of(several, "a.mp4") == ('A "red" ball,\r\nbouncing.',)
    assert of(several, "b.mp4") == ("B",)


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_missing_column_names_those_that_there_are(tmp_path, table_format):
    path = written(tmp_path, table_format, [{"file": "a.mp4", "text": "One."}])
    where = " in line 1" if table_format == "jsonl" else ""
    assert message_of(tmp_path, path) == (
        f"captions.{table_format} has no column filename{where}; its columns are file, text; set "
        "caption_table.filename_column to one of them"
    )
    assert message_of(tmp_path, path, filename_column="file") == (
        f"captions.{table_format} has no column caption; its columns are file, text; set "
        "caption_table.caption_column to one of them"
    )
    known = {"filename_column": "file", "caption_column": "text"}
    assert message_of(tmp_path, path, **known, fallback_caption_column="alt") == (
        f"captions.{table_format} has no column alt; its columns are file, text; set "
        "caption_table.fallback_caption_column to one of them"
    )


def test_a_missing_an_empty_and_an_unreadable_table_are_told(tmp_path):
    assert message_of(tmp_path, tmp_path / "nowhere.csv") == (
        "nowhere.csv is not there; correct caption_table.path; it is looked for in instance_data_dir, beside "
        "the data file and in the working folder"
    )
    for name in ("captions.csv", "captions.jsonl"):
        assert text_message(tmp_path, name, "") == (
            f"{name} is empty; write the captions there or correct the path"
        )
        (tmp_path / name).write_bytes(b"filename,caption\na.mp4,gr\xf6\xdfer\n")
        assert message_of(tmp_path, tmp_path / name) == f"{name} is not UTF-8; save the table as UTF-8"
    (tmp_path / "folder.csv").mkdir()
    assert message_of(tmp_path, tmp_path / "folder.csv") == (
        "folder.csv cannot be read (Is a directory); make it a readable file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "filename,caption\na.mp4,A red ball, bouncing\n",
            ("has 3 cells in line 2 and 2 in its header; put captions with commas between double quotes"),
        ),
        (
            'filename,caption\na.mp4,"A red ball\nb.mp4,B\n',
            (
                "cannot be read as csv in line 3 (unexpected end of data); put captions with commas, quotes "
                'or line ends between double quotes, and write " as ""'
            ),
        ),
        (
            "filename,caption\n,A red ball\n",
            "has no filename in line 2; write the name of the file there or remove the row",
        ),
    ],
)
def test_a_csv_that_would_lose_captions_is_refused(tmp_path, text, message):
    assert text_message(tmp_path, "captions.csv", text) == f"captions.csv {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"filename": "b.mp4"',
            (
                "cannot be read as JSON in line 3 (Expecting ',' delimiter at column 21); write one JSON "
                "object a line"
            ),
        ),
        ('["b.mp4", "B"]', "has no object in line 3; write one JSON object a line"),
        (
            '{"filename": "b.mp4", "caption": 5}',
            "has a caption in line 3 that is neither text nor a list of texts: 5; write text there",
        ),
        (
            '{"filename": "b.mp4", "caption": {"text": "B"}}',
            (
                "has a caption in line 3 that is neither text nor a list of texts: {'text': 'B'}; write text "
                "there"
            ),
        ),
        (
            '{"filename": true, "caption": "B"}',
            "has a filename in line 3 that is not text: True; write the name of the file there",
        ),
        (
            '{"filename": null, "caption": "B"}',
            "has no filename in line 3; write the name of the file there or remove the row",
        ),
    ],
)
def test_a_mistake_in_jsonl_names_its_line(tmp_path, line, message):
    text = f'{{"filename": "a.mp4", "caption": "A"}}\n\n{line}\n'
    assert text_message(tmp_path, "captions.jsonl", text) == f"captions.jsonl {message}"


def test_a_table_that_is_no_parquet_is_told(tmp_path):
    pytest.importorskip("pyarrow")
    message = text_message(tmp_path, "captions.parquet", "filename,caption\na.mp4,A\n")
    assert message.startswith("captions.parquet cannot be read as parquet (")
    assert message.endswith("); write the table again, or set caption_strategy to csv or jsonl if it is one")
    assert message_of(tmp_path, tmp_path / "nowhere.parquet").startswith("nowhere.parquet is not there; ")


def test_numbers_in_parquet_that_are_no_captions_are_told(tmp_path):
    path = written(tmp_path, "parquet", [{"filename": "a.mp4", "caption": 0.5}])
    assert message_of(tmp_path, path) == (
        "captions.parquet has a caption in row 1 that is neither text nor a list of texts: 0.5; write text "
        "there"
    )


def test_without_pyarrow_parquet_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError) as caught:
        read_table("parquet", CaptionTable(path=tmp_path / "captions.parquet"))
    assert str(caught.value) == (
        "caption_strategy (parquet) needs pyarrow, which is not installed; pip install "
        "'longcat-tune[parquet]', or write the table as csv or jsonl"
    )


def test_pyarrow_is_not_loaded_for_other_tables():
    code = "import sys, longcat_tune.data.captions\nassert 'pyarrow' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_large_table_is_mostly_its_captions(tmp_path):
    rows = [
        {"filename": f"clip_{number:05d}.mp4", "caption": f"{number} {'x' * 100}"} for number in range(5000)
    ]
    path = written(tmp_path, "csv", rows)
    tracemalloc.start()
    read_table("csv", CaptionTable(path=path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5000 * 500
