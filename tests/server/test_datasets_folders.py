"""The folder picker walks inside the workspace only, counts what is there, and a change of any file shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longcat_tune.data.images import IMAGE_EXTENSIONS
from longcat_tune.data.listing import VIDEO_EXTENSIONS
from longcat_tune.server import datasets_folders
from longcat_tune.server.datasets_folders import IMAGE_ENDINGS, VIDEO_ENDINGS, look, signature
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    home = tmp_path / "home"
    touch(home / "clips" / "a.mp4", home / "clips" / "deep" / "b.MOV", home / "clips" / "a.txt")
    touch(home / "clips" / "c.png", home / "clips" / ".hidden.mp4", home / "clips" / ".git" / "d.mp4")
    touch(home / "notes.md", tmp_path / "secret" / "e.mp4")
    return Workspace((home.resolve(),))


def test_endings_are_those_of_the_tool():
    assert set(VIDEO_EXTENSIONS) == VIDEO_ENDINGS
    assert set(IMAGE_EXTENSIONS) == IMAGE_ENDINGS


def test_a_folder_is_counted_with_all_below_it(workspace):
    place = look(workspace, "")
    [clips] = place.folders
    assert (clips.name, clips.shown, clips.more) == ("clips", "clips", False)
    assert (clips.videos, clips.images, clips.captions) == (2, 1, 1)
    assert place.above is None
    inside = look(workspace, clips.shown)
    assert [row.name for row in inside.folders] == ["deep"]
    assert inside.above == "."


def test_counting_ends_somewhere(workspace, monkeypatch):
    monkeypatch.setattr(datasets_folders, "MOST_COUNTED", 2)
    [clips] = look(workspace, "").folders
    assert clips.more
    assert clips.videos + clips.images + clips.captions == 2


def test_links_that_lead_out_are_not_shown_and_others_are(workspace, tmp_path):
    home = workspace.home
    (home / "out").symlink_to(tmp_path / "secret")
    (home / "ring").symlink_to(home / "ring")
    (home / "inside").symlink_to(home / "clips" / "deep")
    names = [row.shown for row in look(workspace, "").folders]
    assert names == ["clips", "clips/deep"]


@pytest.mark.parametrize(
    "at", ["..", "../secret", "/etc", "out", "clips/../../secret", "a\0b", "gone", "notes.md"]
)
def test_nothing_else_can_be_looked_into(workspace, tmp_path, at):
    (workspace.home / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(Refusal):
        look(workspace, at)


def test_several_roots_are_listed_first(workspace, tmp_path):
    both = Workspace((workspace.home, (tmp_path / "secret").resolve()))
    place = look(both, "")
    assert place.here is None
    assert [row.shown for row in place.folders] == [".", "secret"]
    assert look(both, "secret").above == ""
    assert look(both, "secret").here.videos == 1


def test_names_that_are_no_text_are_left_out(workspace):
    (workspace.home / os.fsdecode(b"\xff")).mkdir()
    assert [row.name for row in look(workspace, "").folders] == ["clips"]


def test_a_change_of_any_file_shows(workspace):
    clips = workspace.home / "clips"
    before = signature([clips])
    assert signature([clips]) == before
    touch(clips / ".hidden2")
    assert signature([clips]) == before
    (clips / "a.txt").write_text("another")
    changed = signature([clips])
    assert changed != before
    (clips / "deep" / "b.MOV").rename(clips / "deep" / "c.MOV")
    assert signature([clips]) != changed
