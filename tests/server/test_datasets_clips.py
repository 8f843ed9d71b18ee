"""The cards of clips say what the tool's own reports say: read from the real `thumbnails` and `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longcat_tune.cli import main
from longcat_tune.server.datasets_clips import Told
from longcat_tune.server.datasets_work import DatasetWork, caption_of
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace
from tests.builders import make_clips
from tests.media_builders import write_image
from tests.server.web import make_settings

I2V = {"is_i2v": True, "conditioning_data": ["starts"], "video": {"num_frames": 9, "clip_selection": "start"}}


@pytest.fixture
def work(tmp_path: Path) -> DatasetWork:
    settings = make_settings(tmp_path / "home")
    return DatasetWork.of(settings, Workspace(settings.roots))


def write_data(work: DatasetWork, *entries) -> None:
    path = work.workspace.dataset_file("mine")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries))


def pictured(work: DatasetWork, folder: Path, *, apart: bool = False) -> None:
    place = work.thumbnails.place(folder, apart=apart)
    assert main(["thumbnails", str(folder), "--out", str(place), *(["--apart"] if apart else [])]) == 0


def checked(work: DatasetWork, capsys) -> None:
    """Keep what the real check says of the dataset, as the server does."""
    config = work.workspace.home / "config.json"
    values = {"model_flavour": "tiny", "data_backend_config": str(work.workspace.dataset_file("mine"))}
    more = {"max_train_steps": 1, "framerate": 15, "resolution": 64, "output_dir": str(config.parent / "o")}
    config.write_text(json.dumps(values | more))
    capsys.readouterr()
    main(["check", "--json", "--clips", "--config", str(config)])
    kept = work.workspace.state / "checks" / "mine" / "report-15.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(capsys.readouterr().out)
    kept.write_text(json.dumps({"content": "x", "report": report, "said": ""}))


def test_cards_hold_buckets_captions_refusals_and_start_images(work, capsys):
    home = work.workspace.home
    clips, starts = make_clips(home / "clips", 3, frames=20), home / "starts"
    (clips / "clip-1.txt").unlink()
    (clips / "broken.mp4").write_bytes(b"x")
    write_image(starts / "clip-0.png", size=(64, 64))
    write_image(starts / "nobody.png", size=(64, 64))
    held = {"id": "held", "dataset_type": "eval", "instance_data_dir": "../clips", "video": {"num_frames": 9}}
    images = {"id": "starts", "dataset_type": "conditioning", "instance_data_dir": "../starts"}
    write_data(work, {"id": "clips", "instance_data_dir": "../clips"} | I2V, images, held)
    pictured(work, clips)
    pictured(work, starts, apart=True)
    checked(work, capsys)
    dataset = work.dataset("mine", 15)
    broken, used, uncaptioned, unpaired = work.cards(dataset, "clips")
    assert [card.state for card in (broken, used, uncaptioned, unpaired)] == ["refused", "used"] + [
        "refused"
    ] * 2
    assert (used.parts[0].bucket, used.parts[0].frames, used.fps) == ("64x64@9", 9, 15.0)
    assert len(used.captions) == 1
    assert used.start == str(starts / "clip-0.png")
    assert uncaptioned.refusals[0].reason == "has no caption: clips/clip-1.txt does not exist"
    assert uncaptioned.refusals[0].remedy.startswith("write its caption there")
    assert "starts/clip-2.{" in unpaired.refusals[0].reason
    assert str(home) not in repr([card.refusals for card in work.cards(dataset, "clips")])
    assert [card.state for card in work.cards(dataset, "starts")] == ["used", "idle"]
    assert dataset.report.datasets["clips"]["used"] == 1
    assert dataset.report.datasets["held"]["trained"] is False


def test_windows_of_one_file_are_one_card(work, capsys):
    clips = make_clips(work.workspace.home / "clips", 1, frames=20)
    video = {"num_frames": 9, "clip_selection": "all"}
    write_data(work, {"id": "clips", "instance_data_dir": "../clips", "video": video})
    pictured(work, clips)
    checked(work, capsys)
    [card] = work.cards(work.dataset("mine", 15), "clips")
    assert [part.first for part in card.parts] == [0, 9]


def test_files_left_out_are_idle_and_faults_belong_to_the_entry(work, capsys):
    clips = make_clips(work.workspace.home / "clips", 2)
    (work.workspace.home / "empty").mkdir()
    video = {"num_frames": 9}
    entry = {"id": "clips", "instance_data_dir": "../clips", "max_num_samples": 1, "video": video}
    write_data(work, entry, {"id": "none", "instance_data_dir": "../empty"})
    pictured(work, clips)
    checked(work, capsys)
    dataset = work.dataset("mine", 15)
    assert sorted(card.state for card in work.cards(dataset, "clips")) == ["idle", "used"]
    [fault] = dataset.report.faults["none"]
    assert fault.reason == "holds no video file"


def test_a_wrong_data_file_is_told_without_a_plan(work, capsys):
    write_data(work, {"id": "clips", "instance_data_dir": "clips", "repeats": -1})
    checked(work, capsys)
    [fault] = work.dataset("mine", 15).report.faults[""]
    assert "repeats (-1)" in fault.reason


def test_without_a_check_only_what_cannot_be_read_is_refused(work):
    clips = make_clips(work.workspace.home / "clips", 1)
    (clips / "broken.mp4").write_bytes(b"x")
    write_data(work, {"id": "clips", "instance_data_dir": "../clips"})
    dataset = work.dataset("mine", 30)
    assert work.cards(dataset, "clips") == []
    pictured(work, clips)
    broken, whole = work.cards(dataset, "clips")
    assert [broken.state, whole.state] == ["refused", "unknown"]
    assert isinstance(broken.refusals[0], Told)


def test_a_report_that_is_none_is_not_believed(work):
    make_clips(work.workspace.home / "clips", 1)
    write_data(work, {"id": "clips", "instance_data_dir": "../clips"})
    kept = work.workspace.state / "checks" / "mine" / "report-30.json"
    kept.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"content": "x", "report": {"problems": 3}, "said": ""}', '{"content": 1}'):
        kept.write_text(text)
        assert work.dataset("mine", 30).report is None


@pytest.mark.parametrize(
    ("changes", "source", "unread"),
    [
        ({}, "textfile", False),
        ({"caption_strategy": "filename"}, "filename", True),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "a"}, "instanceprompt", True),
        ({"caption_strategy": None}, "", True),
        (
            {"dataset_type": "image", "caption_strategy": "jsonl", "caption_table": {"path": "a"}},
            "jsonl",
            True,
        ),
    ],
)
def test_captions_from_elsewhere_are_shown_as_such(work, changes, source, unread):
    clips = make_clips(work.workspace.home / "clips", 1)
    write_image(clips / "clip-0.png")
    write_data(work, {"id": "clips", "instance_data_dir": "../clips"} | changes)
    dataset = work.dataset("mine", 30)
    [entry] = dataset.judged.entries
    pictured(work, clips, apart=entry.dataset_type != "video")
    [card] = work.cards(dataset, "clips")
    view = caption_of(entry, card.picture)
    assert (view.source, view.unread, view.editable) == (source, unread, source == "textfile")


def test_a_clip_that_became_a_link_out_is_no_clip_any_more(work, tmp_path):
    clips = make_clips(work.workspace.home / "clips", 1)
    write_data(work, {"id": "clips", "instance_data_dir": "../clips"})
    pictured(work, clips)
    dataset = work.dataset("mine", 30)
    [card] = work.cards(dataset, "clips")
    assert work.picture(dataset, "clips", card.picture.id) == card.picture
    secret = tmp_path / "secret.mp4"
    card.picture.file.rename(secret)
    with pytest.raises(Refusal):
        work.picture(dataset, "clips", card.picture.id)
    card.picture.file.symlink_to(secret)
    with pytest.raises(Refusal):
        work.picture(dataset, "clips", card.picture.id)
