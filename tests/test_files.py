"""Files are complete or absent, and a disk's refusal is told with its folder and a remedy."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longcat_tune.errors import UserError
from longcat_tune.files import (
    require_writable,
    write_atomically,
    write_json_atomically,
    write_tensors_atomically,
)


def refuse(number: int):
    def write(part: Path) -> None:
        part.write_text("half")
        raise OSError(number, os.strerror(number))

    return write


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_appears_whole_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    write_atomically(path, lambda part: part.write_text("whole"))
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["note.txt"]


def test_the_part_is_written_in_the_same_folder_under_a_name_of_its_own(tmp_path):
    seen = []
    for _ in range(2):  # two containers on one volume may have one process id
        write_atomically(tmp_path / "x.bin", lambda part: (seen.append(part), part.write_bytes(b"1")))
    one, other = seen
    assert one != other
    assert one.parent == tmp_path
    assert re.fullmatch(r"x\.bin\.[0-9a-f]{8}\.part", one.name)


def test_a_reader_of_the_old_file_never_sees_half_of_the_new(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, lambda part: part.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["note.txt"]


@pytest.mark.parametrize(
    ("number", "rule", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free some space there or choose a folder on another disk"),
        (errno.EROFS, "the folder is not writable", "change its permissions or choose another folder"),
        (errno.EIO, "the system refused", "check that the folder exists and its disk is healthy"),
    ],
)
def test_a_disk_that_refuses_is_explained(tmp_path, number, rule, remedy):
    with pytest.raises(UserError) as caught:
        write_atomically(tmp_path / "note.txt", refuse(number))
    assert str(caught.value) == (
        f"cannot write note.txt in {tmp_path}: {rule} ({os.strerror(number)}); {remedy}"
    )
    assert names_in(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_explained(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write x in .*cache: "):
        write_atomically(tmp_path / "cache" / "x", lambda part: part.write_text("1"))


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert names_in(tmp_path / "a" / "b") == []


def test_a_folder_that_cannot_be_made_is_named_before_work_starts(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .* in .*cache: a file stands where a folder must be"):
        require_writable(tmp_path / "cache")


def test_json_is_readable_text(tmp_path):
    write_json_atomically(tmp_path / "x.json", {"name": "clip é", "frames": [5, 9]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "é" in text
    assert json.loads(text) == {"name": "clip é", "frames": [5, 9]}


def test_tensors_come_back_equal_and_the_file_takes_the_users_permissions(tmp_path):
    path = tmp_path / "x.safetensors"
    table = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    previous = os.umask(0o022)
    try:
        write_tensors_atomically(path, {"transposed": table.T}, {"schema": "1"})
    finally:
        os.umask(previous)
    assert torch.equal(load_file(path)["transposed"], table.T)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
