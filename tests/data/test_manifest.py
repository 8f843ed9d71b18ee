"""Folders with clips that are fine, broken, hidden, linked and oddly named: everything is accounted for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.errors import DataError
from tests.media_builders import AV1, cut_off, write_clip, write_image


def clips_in(folder: Path, **keys) -> Manifest:
    return scan(DatasetEntry(id="clips", instance_data_dir=folder, **({"caption_strategy": None} | keys)))


def names(manifest: Manifest) -> list[str]:
    return [record.name for record in manifest.records]


def refused(manifest: Manifest) -> dict[str, str]:
    return {refusal.path.name: refusal.reason for refusal in manifest.refusals}


def error_of(folder: Path, **keys) -> str:
    with pytest.raises(DataError) as caught:
        clips_in(folder, **keys)
    return str(caught.value).replace(str(folder.parent), "")


def test_records_say_what_the_files_hold(tmp_path):
    write_clip(tmp_path / "sub" / "turned.MP4", frames=15, rotation=90)
    (tmp_path / "sub" / "turned.txt").write_text("one\ntwo\n")
    record = clips_in(tmp_path, caption_strategy="textfile").records[0]
    assert (record.dataset_id, record.name, record.kind) == ("clips", "sub/turned.MP4", "video")
    assert record.path == tmp_path / "sub" / "turned.MP4"
    assert (record.width, record.height) == (48, 64)
    assert (record.source_frames, record.seconds) == (15, pytest.approx(0.5))
    assert (record.captions, record.conditioning) == (("one", "two"), None)


def test_images_have_one_frame_and_conditioning_images_no_caption(tmp_path):
    write_image(tmp_path / "a.png", size=(40, 30), orientation=6)
    (tmp_path / "a.txt").write_text("a picture")
    image = clips_in(tmp_path, dataset_type="image", caption_strategy="textfile").records[0]
    assert (image.kind, image.width, image.height) == ("image", 30, 40)
    assert (image.source_frames, image.seconds, image.captions) == (1, 0.0, ("a picture",))
    still = clips_in(tmp_path, dataset_type="conditioning", caption_strategy="textfile").records[0]
    assert (still.kind, still.captions) == ("image", ())


def test_every_file_is_a_record_or_a_refusal(tmp_path):
    write_clip(tmp_path / "b.mp4", frames=3)
    write_clip(tmp_path / "a" / "z.mkv", frames=3)
    cut_off(write_clip(tmp_path / "cut.mp4"), share=0.5)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "junk.webm").write_text("no video\n" * 99)
    manifest = clips_in(tmp_path)
    assert names(manifest) == ["a/z.mkv", "b.mp4"]
    assert manifest.found == len(manifest.records) + len(manifest.refusals) == 5
    unreadable = "cannot be read as a video (Invalid data found when processing input)"
    assert refused(manifest) == dict.fromkeys(("cut.mp4", "empty.mp4", "junk.webm"), unreadable)
    assert {refusal.remedy for refusal in manifest.refusals} == {
        "replace the file or take it out of the folder"
    }
    assert {refusal.dataset_id for refusal in manifest.refusals} == {"clips"}


def test_missing_captions_are_refusals(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    manifest = clips_in(tmp_path, caption_strategy="textfile")
    assert (manifest.records, manifest.found) == ((), 1)
    assert refused(manifest) == {"clip.mp4": f"has no caption: {clip.with_suffix('.txt')} does not exist"}


def test_other_and_hidden_files_are_not_found(tmp_path, caplog):
    write_clip(tmp_path / "clip.mp4", frames=3)
    for name in (
        ".clip.mp4",
        "._clip.mp4",
        ".trash/clip.mp4",
        "notes.txt",
        "0a1b.latents.safetensors",
        "x.mp4.77.part",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    write_image(tmp_path / "clip.png")
    with caplog.at_level(logging.INFO, logger="longcat_tune.data.manifest"):
        manifest = clips_in(tmp_path)
    assert (names(manifest), manifest.found) == (["clip.mp4"], 1)
    assert caplog.messages == [
        "clips: 1 files are left alone, because dataset_type video does not take their kind"
    ]


def test_links_lead_nowhere_outside(tmp_path, caplog):
    folder = tmp_path / "clips"
    clip = write_clip(folder / "clip.mp4", frames=3)
    other = write_clip(tmp_path / "elsewhere" / "other.mp4", frames=3)
    (folder / "inside.mp4").symlink_to(clip)
    (folder / "outside.mp4").symlink_to(other)
    (folder / "broken.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "sub").symlink_to(other.parent)
    manifest = clips_in(folder)
    assert names(manifest) == ["clip.mp4", "inside.mp4"]
    assert refused(manifest) == {
        "broken.mp4": "cannot be read as a video (No such file or directory)",
        "outside.mp4": "is a link that leads out of instance_data_dir",
    }
    assert caplog.messages == [
        f"clips: {folder / 'sub'} is a link to a folder and is not followed; its files are not used"
    ]
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert names(clips_in(link)) == names(manifest)


def test_odd_names_are_found_in_a_fixed_order(tmp_path):
    odd = ["-i.mp4", "a b.mp4", "line\nbreak.mp4", "naïve 文字 🎬.mp4", "q'u\"o%d.mp4"]
    for name in reversed(odd):
        write_clip(tmp_path / "clip.mp4", frames=2).rename(tmp_path / name)
    assert names(clips_in(tmp_path)) == odd


def test_names_that_cannot_be_written_down_are_refused(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", frames=2)
    source.rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    refusal = clips_in(tmp_path).refusals[0]
    assert (str(refusal.path), refusal.reason) == (
        f"{tmp_path}/\ufffd.mp4",
        "has a name that is not valid UTF-8",
    )


def test_clips_that_the_backend_misreads_are_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=3, **AV1)
    entry = DatasetEntry(id="clips", instance_data_dir=tmp_path, caption_strategy=None)
    assert refused(scan(entry, backend="decord")) == {
        "clip.mp4": "cannot be read with decord: its codec is av1"
    }


def test_folders_without_clips_are_errors(tmp_path):
    assert error_of(tmp_path / "gone") == (
        "clips: instance_data_dir (/gone) cannot be read: /gone (No such file or directory); "
        "create it, correct the path, or change its permissions"
    )
    (tmp_path / "file").touch()
    assert error_of(tmp_path / "file").startswith(
        "clips: instance_data_dir (/file) cannot be read: /file (Not a directory); "
    )
    folder = tmp_path / "images"
    write_image(folder / "a.png")
    assert error_of(folder) == (
        "clips: instance_data_dir (/images) holds no video file; put some there (.mp4, .m4v, .mov, .mkv, "
        ".webm, .avi, .mpg, .mpeg, .ts, .mts, .m2ts, .wmv, .flv) or correct the path"
    )
