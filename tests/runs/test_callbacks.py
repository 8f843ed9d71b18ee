"""What a LoRA's file says of its base can be read anywhere, and tells nothing of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.model import ModelSection
from longcat_tune.runs.callbacks import base_name

WHOLE, PART = "pretrained_model_name_or_path", "pretrained_transformer_model_name_or_path"


def test_a_hub_id_names_the_base_and_the_transformer_s_own_comes_first() -> None:
    assert base_name(ModelSection()) == "final"
    assert base_name(ModelSection(**{WHOLE: "someone/video"})) == "someone/video"
    assert base_name(ModelSection(**{WHOLE: "someone/video", PART: "me/tuned"})) == "me/tuned"


@pytest.mark.parametrize("key", [WHOLE, PART])
def test_a_folder_is_not_told(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "mine", tmp_path / "gone", "mine/weights", "mine", "~/mine"):
        assert base_name(ModelSection(model_flavour="tiny", **{key: str(path)})) == "tiny"
