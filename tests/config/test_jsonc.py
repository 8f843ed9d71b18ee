"""Config files may hold comments; what cannot be parsed is located, and no key is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.errors import ConfigError


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_jsonc(path)
    return str(caught.value).replace(str(path.parent), "DIR")


def test_comments_and_trailing_commas_are_read(tmp_path):
    text = '{ // one\n "a": 1e-4, /* two\n lines */ "b": ["http://x", null,], "c": {"d": true,},\n}'
    assert read_jsonc(written(tmp_path, text)) == {"a": 1e-4, "b": ["http://x", None], "c": {"d": True}}


def test_a_byte_order_mark_is_skipped(tmp_path):
    assert read_jsonc(written(tmp_path, b"\xef\xbb\xbf{}")) == {}


@pytest.mark.parametrize("comment", ["", "// with the lenient parser\n"])
def test_a_key_given_twice_is_an_error(tmp_path, comment):
    path = written(tmp_path, comment + '{"x": {"lora_rank": 8, "lora_rank": 16}}')
    assert message(path) == "DIR/config.json: lora_rank is given twice in one object; keep one"


def test_a_parse_error_has_line_and_column(tmp_path):
    path = written(tmp_path, '{\n  "lora_rank": 8\n  "seed": 1\n}')
    assert message(path) == (
        'DIR/config.json: line 3, column 3: unexpected """; '
        "look for a missing comma, quote or bracket there or just before"
    )


def test_an_empty_file_is_told(tmp_path):
    assert message(written(tmp_path, " \n")) == (
        "DIR/config.json: is empty; let `longcat-tune init CLIPS_DIR` write one"
    )


def test_a_missing_file_names_a_way_to_get_one(tmp_path):
    assert message(tmp_path / "config.json") == (
        "DIR/config.json: there is no such file; check the path, or let `longcat-tune init CLIPS_DIR` "
        "write one"
    )


def test_a_folder_is_told(tmp_path):
    assert message(tmp_path / ".").endswith(
        "cannot be read (Is a directory); check the path and its permissions"
    )


def test_another_encoding_is_told(tmp_path):
    path = written(tmp_path, '{"validation_prompt": "caf\xe9"}'.encode("latin-1"))
    assert message(path) == "DIR/config.json: is not UTF-8 text (byte 26); save it as UTF-8"
