"""Every caption strategy, and the whole message where a caption is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.captions import captions_of
from longcat_tune.data.refusals import UnusableFileError

REMEDY = 'write its caption there, or set caption_strategy to "filename", "instanceprompt" or null'


def entry(**keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=Path("clips"), **keys)


def message_of(path: Path, **keys) -> str:
    with pytest.raises(UnusableFileError) as caught:
        captions_of(path, entry(**keys))
    return str(caught.value).replace(f"{path.parent}/", "")


def test_each_line_of_the_text_file_is_a_caption(tmp_path):
    (tmp_path / "a b.v2.txt").write_text(
        "\ufeff  A red ball. \r\n\r\n  \nEin roter Ball: größer.\n", encoding="utf-8"
    )
    clip = tmp_path / "a b.v2.mp4"
    assert captions_of(clip, entry()) == ("A red ball.", "Ein roter Ball: größer.")


def test_text_file_can_be_one_caption(tmp_path):
    (tmp_path / "clip.txt").write_text("A red ball.\nIt bounces.\n")
    found = captions_of(tmp_path / "clip.mp4", entry(disable_multiline_split=True))
    assert found == ("A red ball.\nIt bounces.",)


def test_name_instance_prompt_and_none():
    clip = Path("clips/a_red__ball on_grass.mp4")
    assert captions_of(clip, entry(caption_strategy="filename")) == ("a red ball on grass",)
    assert captions_of(clip, entry(caption_strategy="instanceprompt", instance_prompt="sks cat")) == (
        "sks cat",
    )
    assert captions_of(clip, entry(caption_strategy=None)) == ("",)


def test_missing_and_empty_captions_are_refused(tmp_path):
    clip = tmp_path / "clip.mp4"
    assert message_of(clip) == f"clip.mp4 has no caption: clip.txt does not exist; {REMEDY}"
    (tmp_path / "clip.txt").write_text(" \n\n")
    assert message_of(clip) == f"clip.mp4 has no caption: clip.txt is empty; {REMEDY}"
    (tmp_path / "clip.txt").write_bytes("größer".encode("latin-1"))
    assert message_of(clip) == "clip.mp4 has a caption that is not UTF-8: clip.txt; save the text as UTF-8"
    (tmp_path / "clip.txt").unlink()
    (tmp_path / "clip.txt").mkdir()
    assert message_of(clip) == (
        "clip.mp4 has a caption that cannot be read: clip.txt (Is a directory); make it a readable text file"
    )
    assert message_of(tmp_path / "__.mp4", caption_strategy="filename") == (
        "__.mp4 has no words in its name; rename it to what it shows"
    )
