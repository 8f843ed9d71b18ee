"""A caption is written beside its clip, whole, and never over what somebody else wrote meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.server.datasets_captions import (
    ABSENT,
    LARGEST_FILE,
    LONGEST_CAPTION,
    CaptionChangedError,
    caption_file,
    read_caption,
    save_caption,
)
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "home" / "clips").mkdir(parents=True)
    return Workspace(((tmp_path / "home").resolve(),))


@pytest.fixture
def path(workspace: Workspace) -> Path:
    return workspace.home / "clips" / "a.txt"


def test_captions_lie_where_training_looks_for_them():
    assert caption_file(Path("clips/a.b.mp4"), is_folder=False) == Path("clips/a.b.txt")
    assert caption_file(Path("clips/walk.v2"), is_folder=True) == Path("clips/walk.v2.txt")


def test_a_first_caption_is_written(workspace, path):
    assert read_caption(path).version == ABSENT
    assert not read_caption(path).exists
    now = save_caption(workspace, path, " one\r\ntwo \n", version=ABSENT)
    assert path.read_bytes() == b"one\ntwo\n"
    assert now.text == "one\ntwo"
    assert now == read_caption(path)
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_what_somebody_else_wrote_is_told_and_kept(workspace, path):
    first = save_caption(workspace, path, "mine", version=ABSENT)
    path.write_text("theirs\n")
    for version in (ABSENT, first.version):
        with pytest.raises(CaptionChangedError) as error:
            save_caption(workspace, path, "mine again", version=version)
        assert error.value.now.text == "theirs"
    assert path.read_text() == "theirs\n"
    save_caption(workspace, path, "mine again", version=error.value.now.version)
    assert path.read_text() == "mine again\n"


def test_a_caption_that_somebody_deleted_is_not_written_anew(workspace, path):
    version = save_caption(workspace, path, "mine", version=ABSENT).version
    path.unlink()
    with pytest.raises(CaptionChangedError):
        save_caption(workspace, path, "mine again", version=version)
    assert not path.exists()


def test_files_that_are_no_captions_are_not_shown(path):
    path.write_bytes(b"\xff\xfe")
    assert read_caption(path).problem == "caption_not_text"
    path.write_bytes(b"a" * (LARGEST_FILE + 1))
    assert read_caption(path).problem == "caption_too_long"
    path.write_bytes(b"\xef\xbb\xbfa caption\r\n")
    assert read_caption(path).text == "a caption"


@pytest.mark.parametrize("text", ["a" * (LONGEST_CAPTION + 1), "a\0b", "a\x1b[31m"])
def test_texts_that_no_caption_is_are_refused(workspace, path, text):
    with pytest.raises(Refusal):
        save_caption(workspace, path, text, version=ABSENT)
    assert not path.exists()


def test_links_are_neither_read_nor_written(workspace, path, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")
    path.symlink_to(secret)
    caption = read_caption(path)
    assert (caption.text, caption.problem) == ("", "caption_link")
    with pytest.raises(Refusal):
        save_caption(workspace, path, "mine", version=caption.version)
    assert secret.read_text() == "secret\n"


def test_nothing_is_written_outside_the_workspace(workspace, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (workspace.home / "link").symlink_to(outside)
    for path in (outside / "a.txt", workspace.home / "link" / "a.txt"):
        with pytest.raises(Refusal):
            save_caption(workspace, path, "mine", version=ABSENT)
    assert list(outside.iterdir()) == []
