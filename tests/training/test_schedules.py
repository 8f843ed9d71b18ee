"""Schedules follow their documented formula, also when they start in the middle."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

from longcat_tune.training.schedules import AppliedSchedule, Schedule, ScheduleName


def rates(schedule: Schedule, *, steps: int, completed: int = 0) -> list[float]:
    optimizer = SGD([Parameter(torch.zeros(1))], lr=2e-4)
    driver = AppliedSchedule(schedule, optimizer, completed_steps=completed)
    made = []
    for _ in range(steps):
        made.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        driver.step()
    return made


def test_constant_ignores_warmup_steps() -> None:
    assert rates(Schedule("constant", warmup_steps=3), steps=5) == [2e-4] * 5


def test_warmup_rises_linearly_and_reaches_the_full_rate_at_its_last_step() -> None:
    expected = [2e-4 * min(1, n / 4) for n in range(1, 8)]
    assert rates(Schedule("constant_with_warmup", warmup_steps=4), steps=7) == pytest.approx(expected)
    assert rates(Schedule("constant_with_warmup"), steps=2) == [2e-4] * 2


FALLING: dict[ScheduleName, list[float]] = {
    # Of 9 steps, at progress 0, 1/4, 1/2, 3/4 and 1, written out by hand.
    "cosine": [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0],
    "cosine_with_restarts": [1, 0.5, 1, 0.5, 0],
    "linear": [1, 0.75, 0.5, 0.25, 0],
    "polynomial": [1, 0.75**2, 0.25, 0.0625, 0],
    "rex": [1, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625, 0],
}


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("warmup", [0, 4])
def test_falling_schedules_go_from_the_warmup_s_end_to_the_last_step(name: ScheduleName, warmup: int) -> None:
    first = max(1, warmup)
    schedule = Schedule(
        name, warmup_steps=warmup, total_steps=first + 8, end_share=0.1, num_cycles=2, power=2.0
    )
    got = [schedule.factor(step) for step in range(first, first + 9, 2)]
    assert got == pytest.approx([0.1 + 0.9 * share for share in FALLING[name]])
    assert [schedule.factor(step) for step in range(1, warmup)] == [n / 4 for n in range(1, warmup)]
    assert schedule.factor(first + 30) == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (5, 5), (9, 5)])
def test_runs_too_short_to_fall_stay_within_bounds(warmup: int, total: int) -> None:
    for name in FALLING:
        schedule = Schedule(name, warmup_steps=warmup, total_steps=total)
        assert all(0 < schedule.factor(step) <= 1 for step in range(1, total + 1))


@pytest.mark.parametrize("name", get_args(ScheduleName))
@pytest.mark.parametrize("completed", [1, 5, 9])
def test_a_resumed_schedule_goes_on_to_the_bit(name: ScheduleName, completed: int) -> None:
    schedule = Schedule(name, warmup_steps=5, total_steps=12, num_cycles=3, power=0.8, end_share=0.01)
    whole = rates(schedule, steps=12)
    assert rates(schedule, steps=12 - completed, completed=completed) == whole[completed:]


def test_groups_keep_their_ratio() -> None:
    slow, fast = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    optimizer = SGD([{"params": [slow], "lr": 1e-4}, {"params": [fast], "lr": 16e-4}])
    AppliedSchedule(Schedule("linear", total_steps=11), optimizer, completed_steps=5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-5, 8e-4])
