"""Schedules follow their documented formula, also when they start in the middle."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW

from longcat_tune.training.optimizers import ScheduleName, build_adamw, build_schedule


def rates(name: ScheduleName, *, warmup: int, steps: int, completed: int = 0) -> list[float]:
    optimizer = build_adamw([Parameter(torch.zeros(1))], learning_rate=2e-4)
    schedule = build_schedule(name, optimizer, warmup_steps=warmup, completed_steps=completed)
    made = []
    for _ in range(steps):
        made.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return made


def test_constant_ignores_warmup_steps() -> None:
    assert rates("constant", warmup=3, steps=5) == [2e-4] * 5


def test_warmup_rises_linearly_and_reaches_the_full_rate_at_its_last_step() -> None:
    expected = [2e-4 * min(1, n / 4) for n in range(1, 8)]
    assert rates("constant_with_warmup", warmup=4, steps=7) == pytest.approx(expected, rel=1e-12)
    assert rates("constant_with_warmup", warmup=0, steps=2) == [2e-4] * 2


@pytest.mark.parametrize("completed", [1, 3, 4, 9])
def test_a_resumed_schedule_goes_on_to_the_bit(completed: int) -> None:
    whole = rates("constant_with_warmup", warmup=5, steps=12)
    rest = rates("constant_with_warmup", warmup=5, steps=12 - completed, completed=completed)
    assert rest == whole[completed:]


def test_adamw_takes_its_numbers_and_is_not_fused_on_the_cpu() -> None:
    parameters = [Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = build_adamw(
        iter(parameters), learning_rate=1e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1
    )
    reference = AdamW([Parameter(torch.ones(3)) for _ in range(2)], 1e-3, (0.8, 0.9), 1e-6, 0.1)
    for optimizer_ in (optimizer, reference):
        for parameter in optimizer_.param_groups[0]["params"]:
            parameter.grad = torch.tensor([1.0, -2.0, 0.5])
        optimizer_.step()
    assert torch.equal(parameters[0], reference.param_groups[0]["params"][0])
    assert not optimizer.defaults["fused"]
