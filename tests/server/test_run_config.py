"""A config's text is judged in the schema's words whatever it holds, and its paths stay in the workspace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_config import (
    LONGEST_TEXT,
    MOST_PROBLEMS,
    judge,
    path_problems,
    placed,
    read_written,
    shown_values,
    text_of_values,
)
from longcat_tune.server.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    for name in ("home", "weights"):
        (tmp_path / name).mkdir()
    return Workspace([(tmp_path / "home").resolve(), (tmp_path / "weights").resolve()])


def problems_of(text: str) -> list[tuple[str, str]]:
    return [(one.key, one.text) for one in judge(text).problems]


def test_each_problem_has_its_key_and_the_words_of_the_schema() -> None:
    assert problems_of('{"lora_rank": 0, "lora_rnk": 1, "flow_min_sigma": 0.9, "flow_max_sigma": 0.5}') == [
        ("", "lora_rnk (1) is not a known key; did you mean lora_rank?"),
        ("lora_rank", "lora_rank (0) must be at least 1; remove it for the default, 8"),
        (
            "flow_min_sigma",
            (
                "flow_min_sigma (0.9) must be below flow_max_sigma (0.5); lower it, or remove both to train "
                "all noise levels"
            ),
        ),
    ]


def test_a_text_that_is_no_json_is_told_with_line_and_column() -> None:
    judged = judge('{\n  "lora_rank": 8,\n  "seed" 1\n}')
    assert judged.values is None
    assert "line 3, column" in judged.problems[0].text


def test_comments_other_spellings_and_defaults_are_understood() -> None:
    judged = judge('{"--lora-rank": 16, // more\n "checkpointing_steps": 7, "seed": 42, "model_type": null,}')
    assert judged.values == {"lora_rank": 16, "checkpoint_step_interval": 7}
    assert judged.problems == ()


def test_keys_of_simpletuner_are_kept_and_their_fate_is_told() -> None:
    judged = judge('{"webhook_config": "x", "ramtorch": true, "seed": 1}')
    assert judged.others == {"webhook_config": "x", "ramtorch": True}
    assert any("webhook_config" in notice for notice in judged.notices) or judged.problems
    assert ("ramtorch", True) not in judged.values.items()
    assert any("ramtorch" in one.text for one in judged.problems)


def test_where_results_go_is_not_for_the_text_to_say() -> None:
    [(key, text)] = problems_of('{"output_dir": "elsewhere"}')
    assert key == "output_dir"
    assert "remove it" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "7",
        "null",
        '{"seed": 1, "seed": 2}',
        "[" * 5000,
        '{"a":' * 5000,
        '{"lora_target": "' + "[" * 5000 + '"}',
        '{"seed": ' + "9" * 5000 + "}",
        '{"validation_prompt": "\\ud800"}',
        '{"\\udfff": 1, "\\udfff": 2}',
        '{"validation_prompt": "\ud800"}',
        '{"seed": NaN}',
        '{"max_train_steps": [[]]}',
        '{"lora_target": ["a{99999999999}"]}',
        "x" * (LONGEST_TEXT + 1),
        "\x00",
    ],
)
def test_whatever_a_text_holds_is_refused_with_words_that_can_be_sent(text: str) -> None:
    judged = judge(text)
    assert judged.problems
    json.dumps([one.text for one in judged.problems], ensure_ascii=False).encode()


def test_a_list_of_problems_ends_where_nobody_reads_on() -> None:
    text = json.dumps({f"lora_ran{number}": number for number in range(999)})
    assert len(judge(text).problems) == MOST_PROBLEMS


def test_the_file_holds_absolute_paths_and_the_form_short_ones(workspace: Workspace) -> None:
    run, (home, weights) = workspace.home / "runs" / "one", workspace.roots
    (weights / "LongCat").mkdir()
    values = {
        "data_backend_config": "datasets/a.json",
        "pretrained_model_name_or_path": "weights/LongCat",
        "pretrained_vae_model_name_or_path": "meituan-longcat/LongCat-Video",
        "init_lora": str(home / "old.safetensors"),
        "resume_from_checkpoint": "latest",
        "seed": 3,
    }
    written = placed(values, workspace, run / "results")
    assert written == {
        "data_backend_config": str(home / "datasets" / "a.json"),
        "pretrained_model_name_or_path": str(weights / "LongCat"),
        "pretrained_vae_model_name_or_path": "meituan-longcat/LongCat-Video",
        "init_lora": str(home / "old.safetensors"),
        "resume_from_checkpoint": "latest",
        "seed": 3,
        "output_dir": str(run / "results"),
    }
    short = {**values, "init_lora": "old.safetensors"}
    del short["resume_from_checkpoint"]
    assert shown_values(written, workspace, run) == short


def test_relative_paths_of_a_config_made_by_hand_start_beside_it(workspace: Workspace) -> None:
    run = workspace.home / "runs" / "one"
    run.mkdir(parents=True)
    (run / "data.json").write_text("[]")
    (run / "config.json").write_text('{"data_backend_config": "data.json", "seed": 5, "webhook_config": 1}')
    shown = shown_values(read_written(run / "config.json"), workspace, run)
    assert shown == {"data_backend_config": "runs/one/data.json", "seed": 5}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("data_backend_config", "../a.json"),
        ("data_backend_config", "/etc/passwd"),
        ("init_lora", "link/a.safetensors"),
        ("group_offload_to_disk_path", "/tmp/elsewhere"),
        ("pretrained_model_name_or_path", "../models"),
        ("pretrained_model_name_or_path", "link"),
        ("resume_from_checkpoint", "/etc"),
        ("user_prompt_library", "a\x00b"),
    ],
)
def test_no_path_leads_out_of_the_workspace(
    workspace: Workspace, tmp_path: Path, key: str, path: str
) -> None:
    (tmp_path / "outside").mkdir()
    (workspace.home / "link").symlink_to(tmp_path / "outside")
    [problem] = path_problems({key: path}, workspace, "en")
    assert problem.key == key
    with pytest.raises(Refusal):
        placed({key: path}, workspace, workspace.home / "results")


@pytest.mark.parametrize("key", ["data_backend_config", "user_prompt_library"])
def test_a_caption_is_no_list_of_files(workspace: Workspace, key: str) -> None:
    caption = workspace.home / "clips" / "a.txt"
    caption.parent.mkdir()
    caption.write_text('[{"id": "all", "instance_data_dir": "/"}]')
    (workspace.home / "link.json").symlink_to(caption)
    for text in ("clips/a.txt", "link.json"):
        [problem] = path_problems({key: text}, workspace, "en")
        assert (problem.key, "(“a.txt”) must name a .json file" in problem.text) == (key, True)
    assert path_problems({key: "clips/a.json", "init_lora": "clips/a.txt"}, workspace, "en") == []


def test_the_text_of_values_is_read_back() -> None:
    values = {"validation_prompt": "红风筝", "lora_target": ["a", "b"]}
    assert judge(text_of_values(values)).values == values
