"""What `init` writes is accepted by everything that follows, and fits the clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.data.manifest import Manifest
from longcat_tune.errors import ConfigError, DataError
from longcat_tune.runs.init import init
from longcat_tune.runs.plan import make_plan
from longcat_tune.types import ClipRecord
from tests.builders import make_clips

CONFIG = Path("config/config.json")


@pytest.mark.parametrize("flavour", ["tiny", "final"])
@pytest.mark.parametrize("i2v", [False, True])
def test_the_files_parse_and_no_clip_is_refused(tmp_path: Path, monkeypatch, flavour: str, i2v: bool) -> None:
    monkeypatch.chdir(tmp_path)
    clips = make_clips(tmp_path / "clips", 2, size=(128, 64), frames=14)
    init(clips, i2v=i2v, demo=False, flavour=flavour)
    # The released weights are not here; the plan of the clips is the same.
    config = load_run_config(CONFIG, {"model_flavour": "tiny"})
    plan = make_plan(config, config_dir=CONFIG.parent)
    plan.require_sound()
    [dataset] = plan.training
    assert {clip.num_cond_latents for clip in dataset.plan.clips} == {int(i2v)}
    assert {clip.bucket.num_frames for clip in dataset.plan.clips} == {13}
    assert config.data.framerate == 15


def test_clips_are_measured_as_the_plan_measures_them(tmp_path: Path, monkeypatch) -> None:
    """A container that rounds times says 3.0999 s for 93 frames; the plan counts 93, so must init."""
    monkeypatch.chdir(tmp_path)
    record = ClipRecord("clips", tmp_path / "a.mp4", "a.mp4", "video", ("a",), 832, 480, 93, 3.0999)
    manifest = Manifest("clips", tmp_path, records=(record,), refusals=(), found=1)
    monkeypatch.setattr("longcat_tune.runs.init.scan", lambda _entry: manifest)
    init(tmp_path, i2v=False, demo=False, flavour="final")
    [entry] = load_datasets(load_run_config(CONFIG, {}), config_dir=CONFIG.parent)
    assert entry.video.bucket_strategy == "aspect_ratio"


def test_the_demo_draws_eight_captioned_clips(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    assert len(list(Path("clips").glob("*.mp4"))) == len(list(Path("clips").glob("*.txt"))) == 8
    [entry] = load_datasets(load_run_config(CONFIG, {}), config_dir=CONFIG.parent)
    assert entry.instance_data_dir == (tmp_path / "clips").resolve()


def test_files_of_the_user_are_never_overwritten(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    CONFIG.parent.mkdir()
    CONFIG.write_text("mine")
    with pytest.raises(ConfigError, match=r"config/config\.json exists and is never overwritten"):
        init(Path("clips"), i2v=False, demo=True, flavour="tiny")
    assert CONFIG.read_text() == "mine"
    assert not Path("clips").exists()


def test_a_folder_without_clips_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        init(Path("empty"), i2v=False, demo=False, flavour="tiny")
    assert not CONFIG.parent.exists()
