"""Two processes train as one with twice the accumulation, and end together; needs gloo and a loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from longcat_tune.training.ema import Ema
from longcat_tune.training.loop import run_loop
from longcat_tune.training.processes import Processes
from tests.training.toys import ToyModel, groups, held_out, parts, recorder, settings, weights

SCRIPT = Path(__file__).parent / "two_processes.py"
ROOT = SCRIPT.parents[2]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Told:
    """What both processes wrote."""

    folder: Path

    def __call__(self, scene: str) -> tuple[dict[str, Any], dict[str, Any]]:
        first, second = (json.loads((self.folder / f"{scene}.{rank}.json").read_text()) for rank in (0, 1))
        return first, second


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return Told(folder)


def test_three_steps_equal_one_process_with_twice_the_accumulation(told: Told) -> None:
    model, seen = ToyModel(), recorder()
    ema = Ema(model.named_parameters(), decay=0.9)
    run_loop(replace(parts(model), ema=ema), groups(accumulation=4), settings=settings(3), hooks=seen.hooks())
    first, second = told("plain")
    assert first["weights"] == second["weights"]
    assert first["average"] == second["average"]
    torch.testing.assert_close(torch.tensor(first["weights"]), weights(model), rtol=1e-5, atol=1e-7)
    assert first["losses"] == pytest.approx([metrics.loss for metrics in seen.metrics], rel=1e-6)
    assert first["grad_norms"] == pytest.approx([metrics.grad_norm for metrics in seen.metrics], rel=1e-5)
    assert first["samples"] == [metrics.samples for metrics in seen.metrics] == [6, 6, 6]


def test_only_the_first_saves_renders_and_logs(told: Told) -> None:
    first, second = told("plain")
    assert first["calls"] == [["validate", 0], ["save", 2], ["save", 3], ["validate", 3]]
    (bands,) = first["events"]
    assert sum(bands[1]["counts"]) == 18
    assert (second["calls"], second["losses"], second["events"]) == ([], [], [])


def test_held_out_clips_are_shared_out_and_the_loss_is_one_process_s(told: Told) -> None:
    first, second = told("evaluated")
    seen = recorder()
    run_loop(parts(), groups(), settings=settings(0), hooks=seen.hooks(), held_out=held_out())
    expected = dict(seen.events)["evaluation"]
    evaluations = [fields for name, fields in first["events"] if name == "evaluation"]
    # The one after the step is left out by both: the second process could not measure its share.
    assert [one["step"] for one in evaluations] == [0]
    assert evaluations[0] | {"seconds": 0} == expected | {"seconds": 0}
    assert first["best"] == second["best"] == expected["loss"]
    assert second["events"] == []
    assert first["weights"] == second["weights"]


def test_a_signal_to_one_stops_both_after_the_same_step(told: Told) -> None:
    first, second = told("stopped")
    assert first["message"] == second["message"]
    assert first["message"].startswith("stopped after step 1, which is saved")
    assert first["weights"] == second["weights"]
    assert first["calls"] == [["save", 1]]


def test_a_step_that_one_has_no_memory_for_is_skipped_by_both(told: Told) -> None:
    first, second = told("full")
    assert first["step"] == second["step"] == 3
    assert first["weights"] == second["weights"]
    assert len(first["losses"]) == 2
    skipped = dict(first["events"])["step_skipped"]
    assert skipped["step"] == 2
    # The second process's half of the second step.
    assert skipped["clip_ids"] == [f"clips/{number}-{sample}.mp4" for number in (5, 7) for sample in (0, 1)]


def test_a_loss_that_is_no_number_ends_both_and_names_the_clip(told: Told) -> None:
    first, second = told("poisoned")
    assert first["message"] == second["message"]
    assert first["message"].startswith("step 2: loss is nan for clips/5-0.mp4, nan for clips/5-1.mp4, which")
    assert first["weights"] == second["weights"]


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(told: Told) -> None:
    first, second = told("resumed")
    assert first["equal"]
    assert second["equal"]
    assert first["losses"] == first["expected"]
    assert first["weights"] == second["weights"]


def test_a_base_shared_out_over_both_trains_as_one_that_each_has_whole(told: Told) -> None:
    first, second = told("shared_out")
    for one in (first, second):
        assert one["equal"]
        assert one["learned"]
        assert one["evaluated"]
        # Rows are shared out, so that a matrix with an odd number of them gives one process a row more.
        assert 0.45 < one["held"] < 0.55
    assert first["weights"] == second["weights"]


def test_a_process_without_memory_ends_a_run_whose_base_is_shared_out(told: Told) -> None:
    assert all(one["message"].startswith("out of memory in step 1") for one in told("shared_out_and_full"))


def test_alone_nothing_is_sent() -> None:
    alone = Processes()
    weight = Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    alone.average_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert alone.gather("x") == ["x"]
    assert (alone.agree(wish=True), alone.agree(wish=False)) == (True, False)
