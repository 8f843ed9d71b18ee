"""Folders with clips that are fine, broken, hidden, linked and oddly named: everything is accounted for."""

from __future__ import annotations

import json
import logging
import os
from fractions import Fraction
from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data import examine, listing
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.sources import SourceIndex
from tests.media_builders import AV1, cut_off, write_clip, write_image

REPLACE = "replace the file or take it out of the folder"


def entry_of(folder: Path, **keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=folder, **({"caption_strategy": None} | keys))


def clips_in(folder: Path, *, index: SourceIndex | None = None, **keys) -> Manifest:
    manifest = scan(entry_of(folder, **keys), index=index)
    assert manifest.found == len(manifest.records) + len(manifest.refusals)
    return manifest


def names(manifest: Manifest) -> list[str]:
    return [record.name for record in manifest.records]


def refused(manifest: Manifest) -> dict[str, str]:
    return {refusal.path.name: refusal.reason for refusal in manifest.refusals}


def told(manifest: Manifest) -> list[str]:
    return [f"{notice.dataset_id}: {notice.fact}; {notice.remedy}" for notice in manifest.notices]


def faults(manifest: Manifest) -> list[str]:
    return [f"{fault.dataset_id}: {fault.path} {fault.reason}; {fault.remedy}" for fault in manifest.faults]


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened from now on, in any order."""
    opened = []
    for name in ("probe", "read_image", "sequence_size"):
        original = getattr(examine, name)

        def noted(path: Path, original=original, **keys):
            opened.append(path.name)
            return original(path, **keys)

        monkeypatch.setattr(examine, name, noted)
    return opened


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
    cut_off(write_clip(tmp_path / "no-index.mp4"), share=0.5)
    cut_off(write_clip(tmp_path / "half.mp4", container_options={"movflags": "+faststart"}), share=0.5)
    cut_off(write_clip(tmp_path / "half.mkv", noise=20), share=0.5)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "junk.webm").write_text("no video\n" * 99)
    os.mkfifo(tmp_path / "pipe.mp4")
    manifest = clips_in(tmp_path)
    assert names(manifest) == ["a/z.mkv", "b.mp4"]
    assert (manifest.found, manifest.faults, manifest.notices) == (8, (), ())
    unreadable = "cannot be read as a video (Invalid data found when processing input)"
    reasons = refused(manifest)
    assert reasons.pop("half.mp4").startswith("is cut off: it announces 2.00 s and holds ")
    assert reasons.pop("half.mkv").startswith("is cut off: it announces 2.00 s and holds ")
    assert reasons == {
        "empty.mp4": "is empty (0 bytes)",
        "junk.webm": unreadable,
        "no-index.mp4": unreadable,
        "pipe.mp4": "is no regular file",
    }
    assert {refusal.dataset_id for refusal in manifest.refusals} == {"clips"}
    remedies = {refusal.path.name: refusal.remedy for refusal in manifest.refusals}
    assert remedies.pop("half.mp4") == remedies.pop("half.mkv") == "copy or export it again"
    assert set(remedies.values()) == {REPLACE}


def test_images_are_read_to_their_end(tmp_path):
    write_image(tmp_path / "whole.jpg", size=(300, 200))
    cut_off(write_image(tmp_path / "half.png", size=(300, 200)), share=0.5)
    (tmp_path / "empty.webp").touch()
    (tmp_path / "text.png").write_text("no image")
    manifest = clips_in(tmp_path, dataset_type="image")
    assert (names(manifest), manifest.found) == (["whole.jpg"], 4)
    assert refused(manifest) == {
        "empty.webp": "is empty (0 bytes)",
        "half.png": "cannot be read as an image (image file is truncated)",
        "text.png": "cannot be read as an image (cannot identify image file)",
    }


def test_short_odd_and_irregular_clips_are_records_as_they_are(tmp_path):
    write_clip(tmp_path / "one.mp4", frames=1)
    write_clip(tmp_path / "odd.mp4", frames=2, size=(63, 47), pix_fmt="yuv444p")
    write_clip(tmp_path / "variable.mkv", frames=4, ticks=[0, 3000, 45000, 48000])
    write_clip(tmp_path / "stretched.mp4", frames=2, pixel_aspect=Fraction(3, 2))
    records = {record.name: record for record in clips_in(tmp_path).records}
    sizes = {name: (record.width, record.height, record.source_frames) for name, record in records.items()}
    assert sizes == {
        "odd.mp4": (63, 47, 2),
        "one.mp4": (64, 48, 1),
        "stretched.mp4": (96, 48, 2),
        "variable.mkv": (64, 48, 4),
    }
    assert records["one.mp4"].seconds == pytest.approx(1 / 30, abs=1e-3)
    assert records["variable.mkv"].seconds == pytest.approx(48000 / 90000, abs=0.2)
    assert records["variable.mkv"].fps < 10


def test_a_title_that_is_not_utf_8_stops_nobody(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=2)
    plain = clip.read_bytes()
    clip.write_bytes(plain.replace(b"Lavf", b"\xe9\xff\xfeX"))
    assert clip.read_bytes() != plain
    assert names(clips_in(tmp_path)) == ["clip.mp4"]


def test_colours_that_ffmpeg_cannot_convert_are_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=2, options={"x264-params": "colormatrix=ictcp"})
    assert refused(clips_in(tmp_path)) == {
        "clip.mp4": "has pictures that cannot be converted to RGB (Operation not supported)"
    }


def test_missing_captions_are_refusals(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    manifest = clips_in(tmp_path, caption_strategy="textfile")
    assert (manifest.records, manifest.found) == ((), 1)
    assert refused(manifest) == {"clip.mp4": f"has no caption: {clip.with_suffix('.txt')} does not exist"}


def test_one_line_tells_everything_that_is_wrong_with_a_file(tmp_path):
    (tmp_path / "a.mp4").write_text("no video\n" * 99)
    (tmp_path / "a.txt").mkdir()
    [refusal] = clips_in(tmp_path, caption_strategy="textfile").refusals
    assert refusal.reason == (
        "cannot be read as a video (Invalid data found when processing input), and has a caption that cannot "
        f"be read: {tmp_path / 'a.txt'} (Is a directory)"
    )
    assert refusal.remedy == f"{REPLACE}; make it a readable text file"


def test_trouble_inside_a_clip_of_pictures_names_the_picture_and_the_clip(tmp_path):
    cut_off(write_image(tmp_path / "take" / "1.png"), share=0.5)
    write_image(tmp_path / "take" / "2.png")
    [refusal] = clips_in(tmp_path, caption_strategy="textfile").refusals
    assert refusal.path == tmp_path / "take" / "1.png"
    assert refusal.reason == (
        f"cannot be read as an image (image file is truncated), and {tmp_path / 'take'} has no caption: "
        f"{tmp_path / 'take.txt'} does not exist"
    )


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
    [line] = told(manifest)
    assert line == (
        "clips: files that dataset_type video does not take: 1 (clip.png); to use them, make them a dataset "
        "of their own kind; the frames of a clip must be alone in a folder and numbered, as in 0001.png"
    )
    for number in range(7):
        write_clip(tmp_path / f"{number}.mp4", frames=1)
    [line] = told(clips_in(tmp_path, dataset_type="image"))
    assert line == (
        "clips: files that dataset_type image does not take: 8 (0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4 and 3 "
        "more); to use them, make them a dataset of their own kind"
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


def test_clips_that_the_backend_misreads_are_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=3, **AV1)
    assert refused(scan(entry_of(tmp_path), backend="decord")) == {
        "clip.mp4": "cannot be read with decord: its codec is av1"
    }


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


def test_an_unusable_caption_table_is_a_fault_and_the_files_are_looked_at(tmp_path):
    write_clip(tmp_path / "a.mp4", frames=2)
    (tmp_path / "b.mp4").touch()
    table = {"path": tmp_path / "gone.csv"}
    manifest = clips_in(tmp_path, caption_strategy="csv", caption_table=table)
    assert [(record.name, record.captions) for record in manifest.records] == [("a.mp4", ())]
    assert list(refused(manifest)) == ["b.mp4"]
    [fault] = faults(manifest)
    assert fault.startswith(f"clips: {tmp_path / 'gone.csv'} is not there; correct caption_table.path")


def test_rows_of_a_table_that_match_no_file_are_told(tmp_path):
    write_clip(tmp_path / "a.mp4", frames=2)
    (tmp_path / "captions.csv").write_text("filename,caption\na.mp4,a ball\nc.mp4,a cat\n")
    table = {"path": tmp_path / "captions.csv"}
    manifest = clips_in(tmp_path, caption_strategy="csv", caption_table=table)
    assert manifest.records[0].captions == ("a ball",)
    assert "c.mp4" in told(manifest)[0]


def test_a_folder_of_numbered_pictures_is_one_clip(tmp_path):
    for number in range(8, 13):
        write_image(tmp_path / "takes" / "take.1" / f"frame {number}.PNG", size=(40, 30))
    (tmp_path / "takes" / "take.1.txt").write_text("a red and green flag")
    write_clip(tmp_path / "clip.mp4", frames=3)
    (tmp_path / "clip.txt").write_text("a red bar")
    keys = {"caption_strategy": "textfile"}
    manifest = clips_in(tmp_path, **keys)
    assert (names(manifest), manifest.found, manifest.notices) == (["clip.mp4", "takes/take.1"], 2, ())
    record = manifest.records[1]
    assert (record.kind, record.path) == ("sequence", tmp_path / "takes" / "take.1")
    assert (record.width, record.height, record.source_frames) == (40, 30, 5)
    assert (record.fps, record.seconds) == (30, pytest.approx(5 / 30))
    assert record.captions == ("a red and green flag",)
    slow = scan(entry_of(tmp_path, **keys), framerate=15).records[1]
    assert (slow.fps, slow.seconds) == (15, pytest.approx(5 / 15))
    own = scan(entry_of(tmp_path, **keys, video={"frames_fps": 24}), framerate=15).records[1]
    assert (own.fps, own.seconds) == (24, pytest.approx(5 / 24))


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


def test_clips_of_pictures_with_gaps_or_damage_are_refused_whole(tmp_path):
    for name in ("gap/a1.png", "gap/a2.png", "gap/a4.png", "sizes/1.png", "torn/1.png", "away/1.png"):
        write_image(tmp_path / name)
    write_image(tmp_path / "sizes" / "2.png", size=(40, 30))
    cut_off(write_image(tmp_path / "torn" / "2.png"), share=0.5)
    (tmp_path / "away" / "2.png").symlink_to(write_image(tmp_path.parent / f"{tmp_path.name}.png"))
    write_image(tmp_path / "circle" / "1.png")
    (tmp_path / "circle" / "2.png").symlink_to("2.png")
    write_image(tmp_path / "empty" / "1.png")
    (tmp_path / "empty" / "2.png").touch()
    manifest = clips_in(tmp_path)
    assert (manifest.records, manifest.found) == ((), 6)
    assert {str(one.path.relative_to(tmp_path)): one.reason for one in manifest.refusals} == {
        "away/2.png": "is a link that leads out of instance_data_dir",
        "circle/2.png": "is a link that leads to no file (Too many levels of symbolic links)",
        "empty/2.png": "is empty (0 bytes)",
        "gap": "lacks the picture number 3, between a2.png and a4.png",
        "sizes": "changes its picture size: 2.png is 40x30, pictures before it 64x48",
        "torn/2.png": "cannot be read as an image (image file is truncated)",
    }


def test_a_second_scan_opens_only_what_changed(tmp_path, monkeypatch):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    write_clip(folder / "a.mp4", frames=2)
    write_clip(folder / "b.mp4", frames=2)
    (folder / "c.mp4").write_text("broken")
    for number in range(3):
        write_image(folder / "d" / f"{number}.png")
    opened = count_opened(monkeypatch)
    first = clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == ["a.mp4", "b.mp4", "c.mp4", "d"]
    opened.clear()
    assert clips_in(folder, index=SourceIndex(cache)) == first
    # What is wrong may be a disk's bad moment, so it is never remembered.
    assert opened == ["c.mp4"]
    opened.clear()
    write_clip(folder / "b.mp4", frames=3)
    write_image(folder / "d" / "1.png", orientation=3)
    second = clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == ["b.mp4", "c.mp4", "d"]
    assert [record.source_frames for record in second.records] == [2, 3, 3]


def test_another_reader_looks_for_itself(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", frames=2)
    index = SourceIndex(tmp_path / "cache")
    clips_in(tmp_path, index=index)
    opened = count_opened(monkeypatch)
    scan(entry_of(tmp_path), index=index, backend="decord")
    scan(entry_of(tmp_path), index=index, backend="decord")
    assert opened == ["a.mp4"]


def test_another_frame_rate_of_pictures_opens_nothing(tmp_path, monkeypatch):
    for number in range(4):
        write_image(tmp_path / "take" / f"{number}.png")
    index = SourceIndex(tmp_path / "cache")
    clips_in(tmp_path, index=index)
    opened = count_opened(monkeypatch)
    [record] = scan(entry_of(tmp_path), index=index, framerate=2).records
    assert (record.seconds, opened) == (2.0, [])


def test_a_killed_scan_goes_on_where_it_was(tmp_path, monkeypatch):
    folder, cache = tmp_path / "clips", tmp_path / "cache"
    clip = write_clip(folder / "00.mp4", frames=1)
    for number in range(1, 40):
        (folder / f"{number:02}.mp4").hardlink_to(clip)
    probe = examine.probe

    def killed(path: Path, **keys):
        if path.name == "30.mp4":
            raise KeyboardInterrupt
        return probe(path, **keys)

    monkeypatch.setattr(examine, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(examine, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        clips_in(folder, index=SourceIndex(cache))
    monkeypatch.setattr(examine, "probe", probe)
    opened = count_opened(monkeypatch)
    clips_in(folder, index=SourceIndex(cache))
    assert sorted(opened) == [f"{number}.mp4" for number in range(30, 40)]


def test_a_memory_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    write_clip(tmp_path / "clips" / "a.mp4", frames=2)
    (tmp_path / "file").touch()
    index = SourceIndex(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert names(clips_in(tmp_path / "clips", index=index)) == ["a.mp4"]
        assert names(clips_in(tmp_path / "clips", index=index)) == ["a.mp4"]
    [message] = caplog.messages
    assert message.startswith(f"cannot write sources.jsonl in {tmp_path / 'file' / 'cache'}: ")
    assert message.endswith("; until then every file is examined again in each run")


def test_relative_folders_are_remembered_by_their_absolute_path(tmp_path, monkeypatch):
    write_clip(tmp_path / "clips" / "a.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    index = SourceIndex(tmp_path / "cache")
    [record] = clips_in(Path("clips"), index=index).records
    assert record.path == Path("clips/a.mp4")
    [line] = (tmp_path / "cache" / "sources.jsonl").read_text().strip().splitlines()
    assert json.loads(line)[0] == str(tmp_path / "clips" / "a.mp4")
