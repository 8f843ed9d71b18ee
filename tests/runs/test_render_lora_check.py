"""LoRAs that work in renders only are judged in the preflight, with a remedy: never after the encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.runs.build import find_checkpoint
from longcat_tune.runs.preflight import preflight
from longcat_tune.runs.render_lora_check import require_render_loras
from longcat_tune.runs.validate import validate
from tests.builders import make_clips, make_run, video_entry
from tests.integration.test_fast_renders import write_distilled

KEYS = ("validation_lora", "validation_refinement_lora")


def run(folder: Path, **keys: Any) -> RunConfig:
    return make_run(folder, [video_entry(make_clips(folder / "clips", 1))], **keys)


def unusable(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "misfit":
        write_distilled(path, width=24)
    elif kind == "damaged":
        path.write_bytes(b"no tensors")
    return path


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "is not there"),
        ("damaged", "cannot be read.*; give a LoRA that was made for the model of this config, or remove "),
        ("misfit", "another model; give a LoRA that was made for the model of this config, or remove "),
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_the_preflight_refuses_once_what_renders_could_not_use(
    tmp_path: Path, key: str, kind: str, reason: str, trains: bool
) -> None:
    config = run(tmp_path, **{key: str(unusable(tmp_path, kind))})
    [error] = preflight(config, config_dir=tmp_path, trains=trains).errors
    with pytest.raises((ConfigError, CheckpointError), match=rf"^{key} \(.*{kind}.safetensors\).*{reason}"):
        raise error


@pytest.mark.parametrize("kind", ["missing", "damaged", "misfit"])
@pytest.mark.parametrize("prompts", [["a"], []])
def test_validate_refuses_before_it_encodes(
    tmp_path: Path, kind: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longcat_tune.runs.validate.fill_caches", None)
    keys = {"data_backend_config": None, "validation_prompt": "b"}
    config = make_run(tmp_path, [], validation_lora=str(unusable(tmp_path, kind)), **keys)
    with pytest.raises((ConfigError, CheckpointError), match=r"^validation_lora \("):
        validate(config, config_dir=tmp_path, loras=[], prompts=prompts, image=None)


def test_one_that_fits_passes_also_where_the_model_is_not_here_yet(tmp_path: Path) -> None:
    path = write_distilled(tmp_path / "fits.safetensors")
    config = run(tmp_path, **dict.fromkeys(KEYS, path.name))
    for transformer in (None, find_checkpoint(config.model).transformer):
        require_render_loras(config, transformer, config_dir=tmp_path)
    misfit = run(tmp_path / "clips", validation_lora=str(unusable(tmp_path, "misfit")))
    require_render_loras(misfit, None, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("start", "option"),
    [
        ({"image": "start.png"}, r"--image \(.*start.png\)"),
        ({"video": "start.png"}, r"--video \(.*start.png\)"),
        ({"segments": 2}, r"--segments \(2\)"),
    ],
)
def test_a_start_without_a_prompt_to_give_it_to_is_refused(
    tmp_path: Path, start: dict[str, Any], option: str
) -> None:
    (tmp_path / "start.png").write_bytes(b"")
    config = make_run(tmp_path, [], data_backend_config=None, validation_prompt_library=True)
    given = {key: tmp_path / value if key != "segments" else value for key, value in start.items()}
    with pytest.raises(ConfigError, match=rf"^{option} needs --prompt or validation_prompt"):
        validate(config, config_dir=tmp_path, loras=[], prompts=[], **({"image": None} | given))
