"""Trackers draw what events.jsonl holds; their packages are needed for the last tests only."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from longcat_tune.errors import ConfigError, UserError
from longcat_tune.training.eval_result import ClipLosses, EvalResult
from longcat_tune.training.metrics import EventLog, SigmaBands, StepMetrics
from longcat_tune.training.trackers import TrackedRun, WandbTracker, scalars, tracking

METRICS = StepMetrics(7, 0, 0.5, None, 1e-4, 2.0, 0.7, 1, 0.1, 3.0)


def test_a_step_gives_a_curve_for_each_number() -> None:
    got = scalars("step", asdict(METRICS))
    assert got == {
        "train/epoch": 0,
        "train/loss": 0.5,
        "train/learning_rate": 1e-4,
        "train/grad_norm": 2.0,
        "train/sigma_mean": 0.7,
        "train/samples": 1,
        "train/seconds": 0.1,
        "train/memory_gib": 3.0,
    }


def test_losses_by_noise_level_are_named_by_their_band() -> None:
    bands = SigmaBands()
    assert not bands
    bands.add([1.0, 3.0, 5.0, 2.0], [0.31, 0.39, 1.0, 0.95])
    fields = {"step": 50, **bands.take()}
    assert scalars("sigma_bands", fields) == {"loss_by_sigma/0.3-0.4": 2.0, "loss_by_sigma/0.9-1.0": 3.5}
    assert not bands


def test_a_held_out_loss_gives_curves_by_task_and_noise_level() -> None:
    rows = [ClipLosses("val/a.mp4", 0, (0.1, 0.3)), ClipLosses("val/a.mp4", 1, (0.2, 0.6))]
    result = EvalResult.of(rows, sigmas=(0.7, 0.98), identity="x")
    fields = {"step": 50, **result.as_json(), "best_loss": 0.3, "best_step": 50, "seconds": 1.5}
    assert scalars("evaluation", fields) == pytest.approx(
        {
            "evaluation/loss": 0.3,
            "evaluation/loss_t2v": 0.2,
            "evaluation/loss_i2v": 0.4,
            "evaluation_by_sigma/0.700": 0.15,
            "evaluation_by_sigma/0.980": 0.45,
            "evaluation_by_sigma_t2v/0.700": 0.1,
            "evaluation_by_sigma_t2v/0.980": 0.3,
            "evaluation_by_sigma_i2v/0.700": 0.2,
            "evaluation_by_sigma_i2v/0.980": 0.6,
        }
    )


def test_events_without_a_step_or_numbers_give_no_curve() -> None:
    assert scalars("run_start", {"max_steps": 5}) == {}
    assert scalars("checkpoint", {"step": 5, "folder": "checkpoint-000005", "whole": True}) == {}
    preview = {"step": 5, "render": "a", "denoising_step": 10, "file": "validation/a.preview.png"}
    assert scalars("preview", preview) == {}


class FakeRun:
    id = "abc"

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def test_a_listener_hears_what_the_file_holds(tmp_path: Path) -> None:
    run = FakeRun()
    tracker = WandbTracker(run)
    with EventLog(tmp_path / "events.jsonl", listeners=[tracker.hear]) as log:
        log.write("run_start", max_steps=3)
        log.write("step", **asdict(METRICS))
    (line,) = [one for one in map(json.loads, (tmp_path / "events.jsonl").open()) if one["event"] == "step"]
    (logged,) = run.logged
    assert logged["train/loss"] == line["loss"]
    assert logged["step"] == 7
    assert tracker.run_id == "abc"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(ConfigError, match=rf"report_to \({name}\) needs the package {name}.*\[trackers\]'"),
        tracking(name, TrackedRun(tmp_path, "p", "r")),  # type: ignore[arg-type]
    ):
        pytest.fail("it went on")


def test_no_tracker_hears_nothing(tmp_path: Path) -> None:
    with tracking("none", TrackedRun(tmp_path, "p", "r")) as tracker:
        tracker.hear("step", asdict(METRICS))
        assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 5), (4, 6)):
        with tracking("tensorboard", TrackedRun(tmp_path, "p", "r", first_step=first)) as tracker:
            for step in range(first, last + 1):
                tracker.hear("step", {"step": step, "loss": step + first / 10})
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    losses = [(one.step, round(one.value, 3)) for one in shown.Scalars("train/loss")]
    assert losses == [(1, 1.1), (2, 2.1), (3, 3.1), (4, 4.4), (5, 5.4), (6, 6.4)]


def test_wandb_without_login_or_network_tells_of_working_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WandbError(Exception):
        pass

    def init(**_keys: object) -> None:
        raise WandbError("No API key configured.\nUse `wandb login`")

    # A stand-in: the real one asks the network, and is seldom installed here.
    stand_in = ModuleType("wandb")
    stand_in.__spec__ = ModuleSpec("wandb", None)
    stand_in.Error, stand_in.init = WandbError, init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    with (
        pytest.raises(UserError, match=r"open a run \(No API key configured\.\); log in.*WANDB_MODE=offline"),
        tracking("wandb", TrackedRun(tmp_path, "p", "r")),
    ):
        pytest.fail("it went on")


def test_wandb_works_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with tracking("wandb", TrackedRun(tmp_path, "longcat-tune", "run", {"lora_rank": 4})) as tracker:
        tracker.hear("step", asdict(METRICS))
        first = tracker.run_id
    with tracking("wandb", TrackedRun(tmp_path, "longcat-tune", "run", run_id=first)) as tracker:
        assert tracker.run_id == first
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
