"""`check` shows every bucket and every refusal, to people and to machines, and fails when there is any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longcat_tune.errors import CheckpointError, ConfigError, DataError
from longcat_tune.runs.check import check
from tests.builders import make_clips, make_run, video_entry


def test_a_sound_run_is_shown_whole(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    config = make_run(
        tmp_path, [video_entry(clips, repeats=1)], validation_prompt="a", validation_resolution="64x96"
    )
    check(config, config_dir=tmp_path, as_json=False)
    shown = capsys.readouterr().out
    assert ["clips", "64x64@9", "2", "4", "9", "48"] in [line.split() for line in shown.splitlines()]
    assert "clips: 2 found = 2 used + 0 refused" in shown
    assert "4 steps per epoch, 2 steps in all" in shown
    assert "render prompt: 64 wide x 96 high (portrait), 9 frames (0.6 s), 2 steps, guidance 4" in shown


def test_machines_get_the_same_and_problems_fail_the_check(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    (clips / "clip-1.txt").unlink()
    with pytest.raises(DataError):
        check(make_run(tmp_path, [video_entry(clips)]), config_dir=tmp_path, as_json=True)
    [dataset] = json.loads(capsys.readouterr().out)["datasets"]
    assert (dataset["found"], dataset["used"], dataset["refused"]) == (2, 1, 1)
    [refusal] = dataset["refusals"]
    assert refusal["path"] == str(clips / "clip-1.mp4")
    assert refusal["remedy"]


def test_weights_of_the_hub_are_not_downloaded(tmp_path: Path, capsys, monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise AssertionError("54 GB for a look at the clips")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    clips = make_clips(tmp_path / "clips", 1)
    config = make_run(tmp_path, [video_entry(clips)], model_flavour="final")
    check(config, config_dir=tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["checkpoint"] is None


def test_a_folder_without_the_model_fails_the_check(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    config = make_run(tmp_path, [video_entry(clips)], pretrained_model_name_or_path=str(clips))
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        check(config, config_dir=tmp_path, as_json=True)


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"max_train_steps": None}, "max_train_steps"), ({"lora_target": ["nothing"]}, "lora_target")],
)
def test_what_train_would_refuse_fails_the_check(tmp_path: Path, keys: dict[str, object], named: str) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    with pytest.raises(ConfigError, match=named):
        check(make_run(tmp_path, [video_entry(clips)], **keys), config_dir=tmp_path, as_json=True)
