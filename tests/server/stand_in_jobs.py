"""Helpers for tests of jobs: boards whose command is the stand-in, and waiting for what must come."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from longcat_tune.server.devices import MACHINE, Device
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.jobs_record import Job

COMMAND = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
ENDLESS = 10**9
LIMIT = 120.0
"""Seconds that a loaded machine may take for anything."""


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def make_board(home: Path, devices: tuple[Device, ...] = (MACHINE,)) -> JobBoard:
    """A board; a second one of the same home is what a restarted server has."""
    return JobBoard(home / "state" / "jobs", command=COMMAND, working_folder=home, devices=lambda: devices)


def make_run(home: Path, run: str = "one", steps: int = ENDLESS, **values: object) -> list[str]:
    """A run's folder; gives the words of its job."""
    folder = home / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    config = {"max_train_steps": steps, "output_dir": str(folder / "results"), **values}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"name": f"Run {run}", "created": 1.0}))
    return ["train", "--config", str(folder / "config.json")]


def events_of(home: Path, run: str = "one") -> list[dict[str, object]]:
    """All whole events that there are so far."""
    path = home / "runs" / run / "results" / "events.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def trains(home: Path, run: str = "one") -> bool:
    return any(event["event"] == "step" for event in events_of(home, run))


def wait_for(job: Job, *states: str) -> None:
    wait_until(lambda: job.state in states)
