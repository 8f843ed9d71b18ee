"""Keys of config.json that another key makes meaningless are told, and refuse nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.config.helpers import config_of

DISTILLED = "with validation_lora, whose renders have steps and guidance of their own"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"validation_lora": "a", "validation_num_inference_steps": 40, "validation_guidance": 3},
            [
                f"validation_num_inference_steps (40) has no effect {DISTILLED}",
                f"validation_guidance (3) has no effect {DISTILLED}",
            ],
        ),
        (
            {"validation_preview_steps": 4},
            ["validation_preview_steps (4) has no effect while validation_preview is false"],
        ),
        ({"hub_model_id": "me/it"}, ["hub_model_id (me/it) has no effect while push_to_hub is false"]),
        (
            {"tracker_run_name": "r", "tracker_project_name": "p"},
            [
                "tracker_project_name (p) has no effect with report_to none",
                "tracker_run_name (r) has no effect with report_to none",
            ],
        ),
        (
            {"tracker_run_name": "r", "report_to": "tensorboard"},
            ["tracker_run_name (r) has no effect with report_to tensorboard"],
        ),
    ],
)
def test_a_key_that_nothing_reads_is_told_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, Any], told: list[str]
) -> None:
    config = config_of(tmp_path, given).flat()
    assert {key: config[key] for key in given} == given
    assert caplog.messages == [f"{tmp_path / 'config.json'}: {one}; remove it" for one in told]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_it_is_told_where_the_key_was_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_of(tmp_path, {"hub_model_id": "me/it", "push_to_hub": True})
    assert caplog.messages == []
    config_of(tmp_path, {"hub_model_id": "me/it", "push_to_hub": True}, push_to_hub="false")
    config_of(tmp_path, tracker_run_name="r")
    assert caplog.messages[0].startswith(f"{tmp_path / 'config.json'}: hub_model_id")
    assert caplog.messages[1].startswith("command line: tracker_run_name")


@pytest.mark.parametrize(
    "given",
    [
        {"validation_num_inference_steps": 40, "validation_guidance": 4.0},
        {"validation_lora": "a", "validation_guidance": None},
        {"validation_preview": True, "validation_preview_steps": 4},
        {"validation_preview_steps": 1, "hub_model_id": None},
        {"tracker_run_name": "r", "tracker_project_name": "p", "report_to": "wandb"},
    ],
)
def test_what_is_read_or_changes_nothing_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, Any]
) -> None:
    config_of(tmp_path, given)
    assert caplog.messages == []
