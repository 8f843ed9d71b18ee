"""events.jsonl holds whole lines, whatever happened to the run before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from longcat_tune.errors import UserError
from longcat_tune.training.metrics import EventLog, StepMetrics


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_events_are_appended_across_runs(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    metrics = StepMetrics(1, 0, 0.5, None, 1e-4, 2.0, 0.7, 1, 0.1, 3.0)
    with EventLog(path) as log:
        log.write("run_start", max_steps=2)
        log.write("step", **asdict(metrics))
    before = time.time()
    with EventLog(path) as log:
        log.write("resume", step=1, folder="checkpoint-000001")
    after = time.time()
    start, step, resume = read(path)
    assert (start["event"], start["max_steps"]) == ("run_start", 2)
    assert step["loss"] == 0.5
    assert resume["event"] == "resume"
    # Rounded to milliseconds.
    assert before - 1e-3 <= float(str(resume["time"])) <= after + 1e-3


def test_half_a_line_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}\n{"event": "st')
    with EventLog(path) as log:
        log.write("run_end", step=1)
    assert [line["event"] for line in read(path)] == ["step", "run_end"]


def test_a_line_is_readable_as_soon_as_it_is_written_and_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from pathlib import Path; from longcat_tune.training.metrics import EventLog\n"
        "log = EventLog(Path(sys.argv[1])); log.write('step', step=1); print('written', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read(path)[0]["step"] == 1


def test_numbers_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log, pytest.raises(ValueError, match="not JSON compliant"):
        log.write("step", loss=float("nan"))
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write events\.jsonl in .*results"):
        EventLog(tmp_path / "results" / "events.jsonl")
