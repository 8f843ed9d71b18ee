"""Folders with clips that are fine, broken, irregular or without captions: everything is accounted for."""

from __future__ import annotations

import os
from fractions import Fraction

import pytest

from longcat_tune.data.manifest import scan
from tests.data.scans import clips_in, entry_of, faults, names, refused, told
from tests.media_builders import AV1, cut_off, write_clip, write_image

REPLACE = "replace the file or take it out of the folder"


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


def test_clips_that_the_backend_misreads_are_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=3, **AV1)
    assert refused(scan(entry_of(tmp_path), backend="decord")) == {
        "clip.mp4": "cannot be read with decord: its codec is av1"
    }


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
