"""Changes of a data file as a whole: new entries, renamed ones, start frames that are paired and given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.server.datasets_edit import folder_text, free_id, new_entry, paired, removed, replaced
from longcat_tune.server.datasets_file import DataFile
from longcat_tune.server.workspace import Workspace

CLIPS = {"id": "clips", "instance_data_dir": "../clips"}
STARTS = {"id": "clips-starts", "dataset_type": "conditioning", "instance_data_dir": "../starts"}
I2V = CLIPS | {"is_i2v": True, "conditioning_data": ["clips-starts"]}


def of(*entries) -> DataFile:
    return DataFile("mine", Path("mine.json"), "", entries, commented=False)


def test_a_folder_inside_home_is_named_from_the_data_file_another_by_its_path(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    workspace = Workspace((home, other))
    assert folder_text(home / "clips" / "a", workspace) == "../clips/a"
    assert folder_text(home, workspace) == ".."
    assert folder_text(other / "a", workspace) == str(other / "a")


def test_a_new_entry_says_no_more_than_it_must(tmp_path):
    workspace = Workspace((tmp_path,))
    folder = tmp_path / "My clips (2)"
    assert new_entry(folder, workspace, kind="video", others=()) == {
        "id": "My-clips-2",
        "instance_data_dir": "../My clips (2)",
    }
    taken = new_entry(folder, workspace, kind="image", others=[{"id": "My-clips-2"}])
    assert taken["id"] == "My-clips-2-2"
    assert taken["dataset_type"] == "image"


@pytest.mark.parametrize(
    ("wanted", "identifier"), [("跳舞", "clips"), ("...", "clips"), ("a b", "a-b"), ("x.y_z-1", "x.y_z-1")]
)
def test_ids_are_what_the_schema_takes(wanted, identifier):
    assert free_id(wanted, ()) == identifier


def test_start_images_of_a_folder_become_an_entry_that_the_clips_name():
    assert paired(of(CLIPS), "clips", "folder", "../starts") == [I2V, STARTS]


def test_a_folder_that_is_an_entry_already_is_taken():
    held = {"id": "first", "dataset_type": "conditioning", "instance_data_dir": "../starts"}
    clips, images = paired(of(CLIPS, held), "clips", "folder", "../starts")
    assert clips["conditioning_data"] == ["first"]
    assert images is held


def test_start_images_that_nothing_names_any_more_go():
    assert paired(of(I2V, STARTS), "clips", "own", None) == [CLIPS | {"is_i2v": True}]
    assert paired(of(I2V, STARTS), "clips", "none", None) == [CLIPS]
    other = {"id": "more", "instance_data_dir": "../more", "conditioning_data": ["clips-starts"]}
    assert paired(of(I2V, STARTS, other), "clips", "none", None) == [CLIPS, STARTS, other]


def test_image_to_video_inside_video_is_given_up_too():
    entry = CLIPS | {"video": {"is_i2v": True}}
    assert paired(of(entry), "clips", "none", None) == [CLIPS]


def test_a_new_id_is_followed_by_those_that_name_it():
    clips, _ = replaced(of(I2V, STARTS), "clips-starts", STARTS | {"id": "first-frames"})
    assert clips["conditioning_data"] == ["first-frames"]


def test_an_entry_that_is_removed_is_named_no_more():
    assert removed(of(I2V, STARTS), "clips-starts") == [CLIPS | {"is_i2v": True}]
