"""Hidden, linked, oddly named and foreign files, and folders that are clips: what a walk finds and leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longcat_tune.data import listing
from longcat_tune.data.sources import SourceIndex
from tests.data.scans import clips_in, faults, names, refused, told
from tests.media_builders import write_clip, write_image


def test_other_and_hidden_files_are_not_found(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=3)
    for name in (
        ".clip.mp4",
        "._clip.mp4",
        ".trash/clip.mp4",
        "notes.txt",
        "mp4",
        "0a1b.latents.safetensors",
        "x.mp4.77.part",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    write_image(tmp_path / "clip.png")
    manifest = clips_in(tmp_path)
    assert (names(manifest), manifest.found) == (["clip.mp4"], 1)
    line, unknown = told(manifest)
    assert unknown == (
        "clips: files of no kind that is known here, which are not used: 1 (mp4); to use them, convert "
        "videos to mp4 and images to png"
    )
    assert line == (
        "clips: files that dataset_type video does not take: 1 (clip.png); to use them, make them a dataset "
        "of their own kind; the frames of a clip must be alone in a folder and numbered, as in 0001.png"
    )
    for number in range(7):
        write_clip(tmp_path / f"{number}.mp4", frames=1)
    line, _ = told(clips_in(tmp_path, dataset_type="image"))
    assert line == (
        "clips: files that dataset_type image does not take: 8 (0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4, 3 more); "
        "to use them, make them a dataset of their own kind"
    )


def test_links_lead_nowhere_outside(tmp_path):
    folder = tmp_path / "clips"
    clip = write_clip(folder / "clip.mp4", frames=3)
    other = write_clip(tmp_path / "elsewhere" / "other.mp4", frames=3)
    (folder / "inside.mp4").symlink_to(clip)
    (folder / "outside.mp4").symlink_to(other)
    (folder / "broken.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "circle.mp4").symlink_to("circle.mp4")
    (folder / "sub").symlink_to(other.parent)
    manifest = clips_in(folder)
    assert names(manifest) == ["clip.mp4", "inside.mp4"]
    assert refused(manifest) == {
        "broken.mp4": "is a link that leads to no file (No such file or directory)",
        "circle.mp4": "is a link that leads to no file (Too many levels of symbolic links)",
        "outside.mp4": "is a link that leads out of instance_data_dir",
    }
    [line] = told(manifest)
    assert line == (
        "clips: links to folders, which are not followed: 1 (sub); to use their files, make the folders "
        "datasets of their own"
    )
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert names(clips_in(link)) == names(manifest)


def test_odd_names_are_found_in_a_fixed_order(tmp_path):
    odd = ["-i.mp4", "a b.mp4", "a/b.mp4", "a0/b.mp4", "line\nbreak.mp4", "naïve 文字 🎬.mp4", "q'u\"o%d.mp4"]
    for name in reversed(odd):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_clip(tmp_path / "clip.mp4", frames=2).rename(tmp_path / name)
    # Folders by their names too: what is in `a` comes before `a b.mp4`.
    assert names(clips_in(tmp_path)) == sorted(odd, key=lambda name: name.split("/"))
    index = SourceIndex(tmp_path / "cache")
    first = clips_in(tmp_path, index=index)
    assert clips_in(tmp_path, index=SourceIndex(tmp_path / "cache")) == first


def test_names_that_cannot_be_written_down_are_refused(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", frames=2)
    source.rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    (tmp_path / os.fsdecode(b"\xfe.png")).write_text("left alone")
    manifest = clips_in(tmp_path, caption_strategy="textfile")
    [refusal] = manifest.refusals
    assert (str(refusal.path), refusal.reason, refusal.remedy) == (
        f"{tmp_path}/\ufffd.mp4",
        "has a name that is not valid UTF-8",
        "rename it",
    )
    assert "(\ufffd.png)" in told(manifest)[0]


def test_folders_without_clips_are_faults(tmp_path):
    [line] = faults(clips_in(tmp_path / "gone"))
    assert line == (
        f"clips: {tmp_path / 'gone'} cannot be read as a folder (No such file or directory); "
        "create it, correct instance_data_dir, or change its permissions"
    )
    (tmp_path / "file").touch()
    assert faults(clips_in(tmp_path / "file"))[0].startswith(
        f"clips: {tmp_path / 'file'} cannot be read as a folder (Not a directory); "
    )
    folder = tmp_path / "images"
    write_image(folder / "a.png")
    [line] = faults(clips_in(folder))
    assert line == (
        f"clips: {folder} holds no video file; put some there (.mp4, .m4v, .mov, .mkv, .webm, .avi, .mpg, "
        ".mpeg, .ts, .mts, .m2ts, .wmv, .flv, folders of numbered pictures) or correct instance_data_dir"
    )


def test_a_folder_that_cannot_be_listed_is_a_fault_and_the_others_are_looked_at(tmp_path, monkeypatch):
    write_clip(tmp_path / "open" / "a.mp4", frames=2)
    write_clip(tmp_path / "locked" / "b.mp4", frames=2)
    scandir = os.scandir

    def guarded(path: Path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    # Permissions do not stop the superuser, who may run the tests.
    monkeypatch.setattr(listing.os, "scandir", guarded)
    manifest = clips_in(tmp_path)
    assert names(manifest) == ["open/a.mp4"]
    [line] = faults(manifest)
    assert line == (
        f"clips: {tmp_path / 'locked'} cannot be read as a folder (Permission denied); "
        "create it, correct instance_data_dir, or change its permissions"
    )


def test_the_dataset_folder_may_itself_be_a_clip(tmp_path):
    folder = tmp_path / "a walk"
    for number in range(3):
        write_image(folder / f"{number}.png")
    (tmp_path / "a walk.txt").write_text("somebody walks")
    [record] = clips_in(folder, caption_strategy="textfile").records
    assert (record.name, record.path, record.source_frames) == ("a walk", folder, 3)
    assert record.captions == ("somebody walks",)


@pytest.mark.parametrize("dataset_type", ["image", "conditioning", "eval"])
def test_numbered_pictures_are_images_of_their_own_elsewhere(tmp_path, dataset_type):
    for number in range(2):
        write_image(tmp_path / f"{number}.png")
    assert names(clips_in(tmp_path, dataset_type=dataset_type)) == ["0.png", "1.png"]


def test_a_folder_named_like_a_picture_is_a_folder(tmp_path):
    write_clip(tmp_path / "take" / "1.png" / "clip.mp4", frames=2)
    write_image(tmp_path / "take" / "2.png")
    assert names(clips_in(tmp_path)) == ["take/1.png/clip.mp4"]


def test_pictures_that_are_no_clip_are_left_alone_and_told(tmp_path):
    for name in ("one/1.png", "two/a1.png", "two/b2.png", "kinds/1.png", "kinds/2.jpg", "text/1.png"):
        write_image(tmp_path / name)
    write_image(tmp_path / "text" / "2.png")
    (tmp_path / "text" / "1.txt").touch()
    write_clip(tmp_path / "clip.mp4", frames=2)
    manifest = clips_in(tmp_path)
    assert (names(manifest), manifest.found) == (["clip.mp4"], 1)
    assert "video does not take: 7 (kinds/1.png, kinds/2.jpg, one/1.png, " in told(manifest)[0]
