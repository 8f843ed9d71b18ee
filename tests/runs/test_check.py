"""`check` shows every bucket and every problem, to people and to machines, and fails when there is any."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.cli import main
from longcat_tune.errors import CheckpointError, ConfigError, DataError, UserError
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs.check import check
from longcat_tune.runs.machine import OtherMachine
from longcat_tune.runs.preflight import preflight
from longcat_tune.runs.problems import SHOWN_OF_A_KIND
from tests.builders import make_clips, make_run, video_entry
from tests.media_builders import write_image

LARGE = OtherMachine("80GiB", "128GiB")
"""Whatever the tests run on."""


def checked(folder: Path, datasets: list[dict[str, Any]], capsys, **keys: Any) -> tuple[list[str], str]:
    """The lines shown, and the message that the check ends with."""
    message = ""
    try:
        check(make_run(folder, datasets, **keys), config_dir=folder, as_json=False, other=LARGE)
    except DataError as error:
        message = str(error)
    return capsys.readouterr().out.splitlines(), message


def checked_json(folder: Path, datasets: list[dict[str, Any]], capsys, **keys: Any) -> dict[str, Any]:
    with suppress(UserError):
        check(make_run(folder, datasets, **keys), config_dir=folder, as_json=True, other=LARGE)
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def copy_of_tiny(folder: Path) -> Path:
    return Path(shutil.copytree(resolve_checkpoint(None, flavour="tiny"), folder))


def test_a_sound_run_is_shown_whole(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    keys = {"validation_prompt": "a", "validation_resolution": "64x96", "train_batch_size": 2}
    lines, message = checked(tmp_path, [video_entry(clips, repeats=2)], capsys, **keys)
    assert lines[0].split("  ")[-1].strip() == "steps per epoch"
    assert lines[1].split() == ["clips", "64x64@9", "2", "6", "9", "48", "3", "3"]
    assert lines[2:5] == [
        "clips: 2 found = 2 used + 0 refused",
        "3 steps per epoch, 2 steps in all",
        "render prompt: 64 wide x 96 high (portrait), 9 frames (0.6 s), 2 steps, guidance 4",
    ]
    assert lines[5].split("  ")[0].strip() == "memory of"
    assert lines[-1] == "No problems."
    assert message == ""


def test_tasks_and_notices_are_shown(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1, frames=20)
    entry = video_entry(
        clips,
        task_mix={"t2v": 1, "i2v": 2, "continuation": 1},
        video={"num_frames": 9, "continuation_frames": 5},
    )
    lines, _ = checked(tmp_path, [entry], capsys)
    assert (
        "clips: tasks: text-to-video 25%, image-to-video from each clip's own first frame 50%, "
        "continuation of 5 frames 25%"
    ) in lines
    assert any(line.startswith("notice clips: footage outside the windows") for line in lines)


def test_problems_of_all_parts_are_told_at_once(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    (clips / "clip-1.txt").unlink()
    checkpoint = copy_of_tiny(tmp_path / "checkpoint")
    vae = checkpoint / "vae" / "config.json"
    vae.unlink()
    datasets = [video_entry(clips), video_entry(tmp_path / "gone", id="val", dataset_type="eval")]
    lines, message = checked(
        tmp_path,
        datasets,
        capsys,
        max_train_steps=None,
        lora_target=["nothing"],
        pretrained_model_name_or_path=str(checkpoint),
        eval_dataset_id="val",
        validation_using_datasets=True,
    )
    head = lines.index("5 problems:")
    assert [line.split()[:2] for line in lines[head + 1 :]] == [
        ["val:", str(tmp_path / "gone")],
        ["clips:", str(clips / "clip-1.mp4")],
        [f"{vae}:", "missing;"],
        ["max_train_steps", "and"],
        ["lora_target", "('nothing')"],
    ]
    assert message == "5 problems; each is listed above with its remedy"


def test_machines_get_one_object_also_with_problems(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 2)
    (clips / "clip-1.txt").unlink()
    report = checked_json(tmp_path, [video_entry(clips)], capsys, max_train_steps=None)
    [dataset] = report["datasets"]
    assert (dataset["found"], dataset["used"], dataset["refused"]) == (2, 1, 1)
    assert report["notices"] == []
    caption, length = report["problems"]
    assert caption == {
        "file": str(clips / "clip-1.mp4"),
        "reason": f"has no caption: {clips / 'clip-1.txt'} does not exist",
        "remedy": caption["remedy"],
        "dataset": "clips",
    }
    assert (length["file"], length["dataset"]) == (None, None)
    assert length["remedy"] == 'add "max_train_steps": 1000 to the config'


def test_every_clip_is_listed_where_that_is_asked_for(tmp_path: Path, capsys) -> None:
    clips, stills = make_clips(tmp_path / "clips", 2, frames=20), tmp_path / "stills"
    (clips / "clip-0.txt").write_text("one\ntwo")
    still = write_image(stills / "clip-0.png", size=(64, 64))
    entries = [
        video_entry(clips, is_i2v=True, conditioning_data=["stills"]),
        {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": str(stills)},
        video_entry(clips, id="held", dataset_type="eval", video={"num_frames": 9, "clip_selection": "all"}),
    ]
    config = make_run(tmp_path, entries)
    with pytest.raises(DataError):
        check(config, config_dir=tmp_path, as_json=True, clips=True, other=LARGE)
    rows = json.loads(capsys.readouterr().out)["clips"]
    paired, *held = rows
    assert paired == {
        "dataset": "clips",
        "clip": "clips/clip-0.mp4",
        "file": str(clips / "clip-0.mp4"),
        "kind": "video",
        "width": 64,
        "height": 64,
        "fps": 15.0,
        "seconds": 1.333,
        "bucket": "64x64@9",
        "frames": 9,
        "first_frames": [0],
        "captions": ["one", "two"],
        "start_image": str(still),
    }
    assert [(row["clip"], row["first_frames"]) for row in held[:2]] == [
        ("held/clip-0.mp4#1", [0]),
        ("held/clip-0.mp4#2", [9]),
    ]
    with pytest.raises(DataError):
        check(config, config_dir=tmp_path, as_json=False, clips=True, other=LARGE)
    line = f"clips/clip-0.mp4: 64x64@9, 9 frames, starts from {still}: one | two"
    assert line in capsys.readouterr().out.splitlines()


def test_machines_get_the_problems_of_the_data_file_too(tmp_path: Path, capsys) -> None:
    datasets = [{"id": "a", "instance_data_dir": "a", "repeats": -1}, {"id": "a"}]
    with pytest.raises(ConfigError):
        check(make_run(tmp_path, datasets), config_dir=tmp_path, as_json=True)
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 2
    assert "repeats (-1)" in problems[0]["reason"]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ('{"lora_rank": 0}', [], "config.json: lora_rank (0) must be at least 1"),
        ("{", [], "config.json"),
        ("{}", ["--lora_rank", "many"], "command line: --lora_rank (many) must be a whole number"),
        ("{}", ["--device-memory", "large"], "large"),
    ],
)
def test_machines_get_the_problems_of_the_config_and_the_command_line_too(
    tmp_path: Path, capsys, text: str, options: list[str], told: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["check", "--config", str(path), "--json", *options]) == 2
    shown = capsys.readouterr()
    [problem] = json.loads(shown.out)["problems"]
    assert told in problem["reason"]
    assert problem["reason"] in shown.err
    assert main(["check", "--config", str(path), *options]) == 2
    assert capsys.readouterr().out == ""


def test_a_thousand_refusals_stay_readable_and_machines_get_all(tmp_path: Path, capsys) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(1000):
        (clips / f"clip {number}.mp4").write_bytes(b"")
        (clips / f"clip {number}.txt").write_text("a")
    lines, message = checked(tmp_path, [video_entry(clips)], capsys)
    assert "clips: 1000 found = 0 used + 1000 refused" in lines
    assert len(lines) < SHOWN_OF_A_KIND + 10
    assert lines[-1] == f"  clips: and {1000 - SHOWN_OF_A_KIND} more of this kind; `check --json` lists all"
    assert message.startswith("1,000 problems;")
    assert len(checked_json(tmp_path, [video_entry(clips)], capsys)["problems"]) == 1000


def test_weights_of_the_hub_are_not_downloaded(tmp_path: Path, capsys, monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise AssertionError("54 GB for a look at the clips")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    clips = make_clips(tmp_path / "clips", 1)
    assert checked_json(tmp_path, [video_entry(clips)], capsys, model_flavour="final")["checkpoint"] is None
    lines, _ = checked(tmp_path, [video_entry(clips)], capsys, model_flavour="final")
    assert lines[-2].startswith("the weights were not looked for: they come from the hub")


def test_every_folder_of_the_checkpoint_is_looked_at(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    report = checked_json(tmp_path, [video_entry(clips)], capsys, pretrained_model_name_or_path=str(clips))
    *encoders, transformer = [problem["reason"] for problem in report["problems"]]
    assert encoders == [
        f"{clips / 'vae' / 'config.json'}: missing",
        f"{clips / 'text_encoder' / 'config.json'}: missing",
    ]
    assert transformer.startswith(str(clips))


def test_a_shard_that_the_text_encoder_s_index_names_must_be_there(tmp_path: Path, capsys) -> None:
    clips, checkpoint = make_clips(tmp_path / "clips", 1), copy_of_tiny(tmp_path / "checkpoint")
    encoder = checkpoint / "text_encoder"
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    report = checked_json(
        tmp_path, [video_entry(clips)], capsys, pretrained_model_name_or_path=str(checkpoint)
    )
    assert [problem["reason"] for problem in report["problems"]] == [
        f"{encoder / 'model-00002-of-00002.safetensors'}: missing"
    ]


def test_what_training_cannot_go_on_from_fails_the_check(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    (tmp_path / "out" / "checkpoint-000500").mkdir(parents=True)
    report = checked_json(tmp_path, [video_entry(clips)], capsys, resume_from_checkpoint="none")
    [problem] = report["problems"]
    assert problem["reason"].startswith("resume_from_checkpoint (none)")


def test_only_training_needs_a_length_and_lora_targets(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    config = make_run(tmp_path, [video_entry(clips)], max_train_steps=None, lora_target=["nothing"])
    preflight(config, config_dir=tmp_path, trains=False).require_sound()
    assert len(preflight(config, config_dir=tmp_path, trains=True).problems) == 2


def test_a_lone_error_keeps_its_words_and_its_exit_code(tmp_path: Path) -> None:
    clips, checkpoint = make_clips(tmp_path / "clips", 1), copy_of_tiny(tmp_path / "checkpoint")
    for keys, kind, words in (
        ({"max_train_steps": None}, ConfigError, "max_train_steps and num_train_epochs"),
        ({"pretrained_model_name_or_path": str(tmp_path / "gone")}, CheckpointError, "no such folder"),
    ):
        config = make_run(tmp_path, [video_entry(clips)], **keys)
        with pytest.raises(kind, match=words):
            preflight(config, config_dir=tmp_path, trains=True).require_sound()
    (checkpoint / "dit" / "config.json").unlink()
    config = make_run(
        tmp_path,
        [video_entry(clips)],
        max_train_steps=None,
        pretrained_model_name_or_path=str(checkpoint),
    )
    with pytest.raises(DataError, match=r"^2 problems;"):
        preflight(config, config_dir=tmp_path, trains=True).require_sound()


def test_the_check_reads_no_heavy_library(tmp_path: Path) -> None:
    """A process of its own: here others have loaded them."""
    clips = make_clips(tmp_path / "clips", 1)
    make_run(tmp_path, [video_entry(clips)])
    code = (
        "import sys; from longcat_tune.cli import main; "
        f"code = main(['check', '--config', {str(tmp_path / 'config.json')!r}]); "
        "heavy = {'diffusers', 'transformers', 'peft', 'accelerate', 'pyarrow', 'decord'}; "
        "sys.exit(f'{code} {sorted(heavy & sys.modules.keys())}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []"


def test_a_start_image_that_no_clip_needs_is_refused_by_name_too(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    stills = tmp_path / "stills"
    write_image(stills / "clip-0.png")
    (stills / "extra.png").touch()
    entries = [
        video_entry(clips, is_i2v=True, conditioning_data=["stills"]),
        {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": str(stills)},
    ]
    report = checked_json(tmp_path, entries, capsys)
    assert [Path(problem["file"]).name for problem in report["problems"]] == ["extra.png"]


def test_a_share_of_a_dataset_is_counted_as_the_run_takes_it(tmp_path: Path, capsys) -> None:
    clips = make_clips(tmp_path / "clips", 5)
    report = checked_json(tmp_path, [video_entry(clips, probability=0.5)], capsys)
    [row] = report["datasets"][0]["buckets"]
    assert (row["uses_per_epoch"], row["batches"], row["steps_per_epoch"]) == (3, 3, [3.0])


def test_a_damaged_list_of_shards_is_told_with_the_rest(tmp_path: Path, capsys) -> None:
    checkpoint = copy_of_tiny(tmp_path / "tiny")
    (checkpoint / "vae" / "x.safetensors.index.json").write_text("{")
    clips = make_clips(tmp_path / "clips", 1)
    keys = {"pretrained_model_name_or_path": str(checkpoint)}
    report = checked_json(tmp_path, [video_entry(clips)], capsys, **keys)
    assert "x.safetensors.index.json: damaged" in report["problems"][0]["reason"]
