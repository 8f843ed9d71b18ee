"""The memory plan as people, machines and the run's own record see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longcat_tune.runs.check import check
from longcat_tune.runs.machine import OtherMachine
from longcat_tune.runs.train import train
from tests.builders import make_clips, make_run, video_entry

CARD = OtherMachine("24GiB", "64GiB", "RTX 4090")


def checked(folder: Path, capsys, *, other: OtherMachine = CARD, as_json: bool = True, **keys: Any) -> str:
    config = make_run(folder, [video_entry(make_clips(folder / "clips", 1))], **keys)
    check(config, config_dir=folder, as_json=as_json, other=other)
    out: str = capsys.readouterr().out
    return out


def test_machines_get_every_term_of_every_part(tmp_path: Path, capsys) -> None:
    memory = json.loads(checked(tmp_path, capsys, validation_prompt="a"))["memory"]
    names = [part["name"] for part in memory["parts"]]
    assert names == ["training 64x64@9", "render 64x64@9", "encoding clips 64x64@9", "encoding captions"]
    assert memory["device"] == "RTX 4090"
    for part in memory["parts"]:
        for where in ("device", "host"):
            assert part[where]["bytes"] == sum(term["bytes"] for term in part[where]["terms"])
            assert part[where]["bytes"] >= part[where]["tensor_bytes"]
            assert all(term["source"] for term in part[where]["terms"])
    training = memory["parts"][0]
    assert training["moved_bytes"] == 0
    assert training["seconds"] > 0


def test_people_get_the_parts_then_the_terms_of_the_fullest_moment(tmp_path: Path, capsys) -> None:
    lines = checked(tmp_path, capsys, as_json=False, musubi_blocks_to_swap=3).splitlines()
    [head] = [number for number, line in enumerate(lines) if line.startswith(" memory of ")]
    assert lines[head + 1].split()[:2] == ["training", "64x64@9"]
    assert any(line.startswith(" ring of slots ") for line in lines)
    free = "23.4 GiB of device memory and 64.0 GiB of host memory free"
    assert f"memory: RTX 4090 has {free}; 3 blocks are streamed" in lines


def test_a_run_leaves_its_plan_and_its_peaks(tmp_path: Path) -> None:
    config = make_run(tmp_path, [video_entry(make_clips(tmp_path / "clips", 1))], max_train_steps=1)
    train(config, config_dir=tmp_path)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["memory"]["placement"]["streamed_blocks"] == 0
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    end = events[-1]
    assert (end["event"], end["how"]) == ("run_end", "finished")
    assert end["predicted_device_bytes"] is end["measured_device_bytes"] is None
    assert end["predicted_host_bytes"] > 0
    assert end["measured_host_bytes"] > 0
