"""What a run goes on from is settled before anything is encoded or written."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.checkpoint import run_state
from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.checkpoint.run_state import STATE_FILE
from longcat_tune.errors import ConfigError, DataError, UserError
from longcat_tune.runs.resume import EPOCH_ORDER, fingerprint
from longcat_tune.runs.train import train
from longcat_tune.types import Bucket, CachedSample, Task, TrainingSet
from tests.builders import make_clips, make_run, video_entry


def run(folder: Path, clips: Path, **keys: Any) -> Path:
    config = make_run(folder, [video_entry(clips)], **{"max_train_steps": 1, **keys})
    train(config, config_dir=folder)
    return config.output.output_dir


def files_of(output_dir: Path) -> dict[Path, bytes]:
    """Everything but what was learned of the clips by looking at them."""
    files = (path for path in output_dir.rglob("*") if path.is_file() and path.name != "sources.jsonl")
    return {path: path.read_bytes() for path in files}


def test_another_rank_is_refused_by_name_and_nothing_changes(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    output_dir = run(tmp_path, clips)
    before = files_of(output_dir)
    with pytest.raises(UserError) as error:
        run(tmp_path, make_clips(tmp_path / "other", 2), lora_rank=16, max_train_steps=2)
    folder = output_dir / "checkpoint-000001"
    assert str(error.value) == (
        f"lora_rank (16) must stay what it is in {folder} (8) to go on from there; set it back, or choose "
        "another output_dir"
    )
    assert files_of(output_dir) == before


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    output_dir = run(tmp_path, clips)
    lora = (output_dir / LORA_FILE).read_bytes()
    (output_dir / "checkpoint-000001" / STATE_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint \(latest\).*has only damaged ones"):
        run(tmp_path, clips)
    assert (output_dir / LORA_FILE).read_bytes() == lora


def test_a_finished_run_says_that_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    run(tmp_path, clips)
    with caplog.at_level(logging.INFO):
        run(tmp_path, clips)
    assert "All 1 steps are done already; raise max_train_steps to train on" in caplog.messages


def test_the_users_own_config_is_not_replaced(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    config = make_run(tmp_path, [video_entry(clips)], output_dir=str(tmp_path), max_train_steps=1)
    path = tmp_path / "config.json"
    written = "// mine\n" + path.read_text()
    path.write_text(written)
    train(config, config_dir=tmp_path)
    assert (tmp_path / "plan.json").is_file()
    assert path.read_text() == written


def test_unusable_clips_are_told_before_the_weights_are_fetched(tmp_path: Path, monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise AssertionError("54 GB before a missing caption is told")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    clips = make_clips(tmp_path / "clips", 1)
    (clips / "clip-0.txt").unlink()
    with pytest.raises(DataError):
        run(tmp_path, clips, model_flavour="final")


def test_a_target_that_matches_nothing_is_told_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_target"):
        run(tmp_path, make_clips(tmp_path / "clips", 1), lora_target=["nothing"])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_named_checkpoint_is_gone_on_from_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    first = run(tmp_path, clips, max_train_steps=2, checkpoint_step_interval=1)
    shutil.rmtree(first / "checkpoint-000002")
    named = {"resume_from_checkpoint": "checkpoint-000001", "checkpoints_total_limit": 1}
    run(tmp_path, clips, max_train_steps=3, **named)
    assert [path.name for path in first.glob("checkpoint-*")] == ["checkpoint-000003"]
    run(tmp_path, clips, max_train_steps=4, **named)
    events = [json.loads(line) for line in (first / "events.jsonl").read_text().splitlines()]
    assert [one["step"] for one in events if one["event"] == "resume"] == [1, 3]
    assert [one["step"] for one in events if one["event"] == "step"] == [1, 2, 2, 3, 4]


def test_another_length_of_a_falling_rate_stops_the_run_unless_accepted(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    run(tmp_path, clips, lr_scheduler="cosine")
    with pytest.raises(ConfigError, match=r"\n  max_train_steps  1 -> 2\n.*--accept_changes"):
        run(tmp_path, clips, lr_scheduler="cosine", max_train_steps=2)
    run(tmp_path, clips, lr_scheduler="cosine", num_train_epochs=7)  # Steps win.
    run(tmp_path, clips, lr_scheduler="cosine", max_train_steps=2, accept_changes=True)


def test_sparse_attention_stops_a_run_that_learned_densely(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    run(tmp_path, clips, attention_implementation="math")
    with pytest.raises(ConfigError, match=r"\n  attention_implementation  math -> block_sparse\n"):
        run(tmp_path, clips, attention_implementation="block_sparse", max_train_steps=2)
    run(tmp_path, clips, attention_implementation="sdpa", max_train_steps=2)


def test_what_a_run_started_as_is_not_looked_at_again(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    start = tmp_path / "start.safetensors"
    shutil.copy(run(tmp_path, clips, output_dir=str(tmp_path / "other")) / LORA_FILE, start)
    run(tmp_path, clips, init_lora=str(start))
    start.unlink()
    run(tmp_path, clips, init_lora=str(start), max_train_steps=2)


def test_a_checkpoint_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(tmp_path / "clips", 1)
    output_dir = run(tmp_path, clips)
    read: list[Path] = []
    measure = run_state._measure
    monkeypatch.setattr(run_state, "_measure", lambda path: read.append(path) or measure(path))
    run(tmp_path, clips)
    assert len(read) == len(set(read)) == len(list((output_dir / "checkpoint-000001").iterdir())) - 1


CLIPS = tuple(
    CachedSample(f"d/{name}.mp4", Bucket(64, 64, 9), (Path("a"), Path("b")), None, (Path("text"),))
    for name in ("one", "two", "three\nand\udcff")
)
SET = TrainingSet("d", CLIPS, uses_per_epoch=2, tasks=(Task(0, 0.5), Task(1, 0.5)))


def order_hash(folder: Path, *sets: TrainingSet, **keys: Any) -> object:
    return fingerprint(make_run(folder, [video_entry(folder)], **keys), sets)[EPOCH_ORDER]


def test_the_hash_of_the_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    assert order_hash(tmp_path, SET) == "3eafdc54c5469212c42f31ef5b3a817b"


@pytest.mark.parametrize(
    "sets",
    [
        [replace(SET, dataset_id="e")],
        [replace(SET, uses_per_epoch=1)],
        [replace(SET, probability=0.5)],
        [replace(SET, start_step=2)],
        [replace(SET, end_step=9)],
        [replace(SET, keeps_base=True)],
        [replace(SET, tasks=(Task(0, 0.5), Task(4, 0.5)))],
        [replace(SET, tasks=(Task(0, 0.6), Task(1, 0.4)))],
        [replace(SET, samples=CLIPS[:2])],
        [replace(SET, samples=CLIPS[::-1])],
        [replace(SET, samples=(*CLIPS[:2], replace(CLIPS[2], clip_id="d/other.mp4")))],
        [replace(SET, samples=(*CLIPS[:2], replace(CLIPS[2], bucket=Bucket(64, 128, 9))))],
        [replace(SET, samples=(*CLIPS[:2], replace(CLIPS[2], latents_paths=(Path("a"),))))],
        [SET, replace(SET, dataset_id="e")],
        [replace(SET, samples=CLIPS[:1]), replace(SET, samples=CLIPS[1:])],
        [],
    ],
)
def test_whatever_decides_the_order_is_in_its_hash(tmp_path: Path, sets: list[TrainingSet]) -> None:
    assert order_hash(tmp_path, *sets) != order_hash(tmp_path, SET)


@pytest.mark.parametrize("keys", [{"train_batch_size": 2}, {"gradient_accumulation_steps": 2}, {"seed": 43}])
def test_so_are_the_run_s_own_keys(tmp_path: Path, keys: dict[str, int]) -> None:
    assert order_hash(tmp_path, SET, **keys) != order_hash(tmp_path, SET)


def test_where_the_caches_lie_and_what_they_hold_is_not(tmp_path: Path) -> None:
    moved = [replace(clip, latents_paths=(Path("c"), Path("d")), text_paths=(Path("e"),)) for clip in CLIPS]
    other = order_hash(tmp_path, replace(SET, samples=tuple(moved)), learning_rate=1.0)
    assert other == order_hash(tmp_path, SET)
