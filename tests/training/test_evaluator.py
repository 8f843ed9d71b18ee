"""Evaluations of a run come when due, leave no trace in it, keep the best checkpoint, and never end it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_tune.errors import DataError, InterruptedRunError
from longcat_tune.training.evaluation import HeldOut, HeldOutClip, measure
from longcat_tune.training.interfaces import LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.types import BestEvaluation
from tests.training.toys import (
    Filling,
    Recorder,
    Switching,
    ToyModel,
    groups,
    held_out,
    parts,
    recorder,
    settings,
    weights,
    with_latents,
)

CPU = torch.device("cpu")


def run(
    max_steps: int,
    what: HeldOut | None,
    *,
    model: ToyModel | None = None,
    seen: Recorder | None = None,
    start: LoopState | None = None,
    **changes: Any,
) -> tuple[LoopState, Recorder, ToyModel]:
    model, seen = model or ToyModel(), seen or recorder()
    begin = (start or LoopState()).step
    end = run_loop(
        parts(model, completed=begin),
        groups(begin),
        settings=settings(max_steps, **changes),
        hooks=seen.hooks(),
        start=start,
        held_out=what,
    )
    return end, seen, model


def told(seen: Recorder) -> list[dict[str, Any]]:
    return [fields for name, fields in seen.events if name == "evaluation"]


def steps(seen: Recorder) -> list[int]:
    return [fields["step"] for fields in told(seen)]


def calling(function: Callable[[], object], *, at: int) -> HeldOut:
    """Held-out clips that call something when they are read for the n-th time, from 1."""
    calls = iter(range(1, 100))
    usual = held_out()

    def clips() -> Iterator[HeldOutClip]:
        if next(calls) == at:
            function()
        yield from usual.clips()

    return replace(usual, clips=clips)


def fail() -> None:
    raise DataError("cache file x is missing; run cache-latents")


def test_it_comes_before_the_first_step_every_so_often_and_at_the_end() -> None:
    assert steps(run(5, held_out(), evaluate_every=2)[1]) == [0, 2, 4, 5]
    assert steps(run(4, held_out(), evaluate_every=2)[1]) == [0, 2, 4]
    assert steps(run(3, held_out())[1]) == [0, 3]
    assert steps(run(3, None, evaluate_every=1)[1]) == []


def test_the_event_tells_what_was_measured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        _, seen, model = run(2, held_out(), evaluate_every=1)
    first, *_, last = told(seen)
    sigmas = held_out().sigmas
    expected = [row.losses for row in measure(ToyModel(), held_out().clips(), sigmas=sigmas, device=CPU)]
    assert first["loss"] == pytest.approx(sum(map(sum, expected)) / 24)
    assert first["losses"] == pytest.approx([sum(level) / 3 for level in zip(*expected, strict=True)])
    assert first["sigmas"] == list(sigmas)
    assert list(first["by_task"]) == ["t2v", "i2v", "continuation"]
    assert (first["clips"], first["identity"], first["best_step"]) == (3, "toys", 0)
    assert first["seconds"] > 0
    after = measure(model, held_out().clips(), sigmas=sigmas, device=CPU)
    assert last["loss"] == pytest.approx(sum(sum(row.losses) for row in after) / 24)
    assert f"evaluation at step 0: loss {first['loss']:.4f} (the base)" in caplog.messages
    assert any(
        message.startswith(f"evaluation at step 2: loss {last['loss']:.4f} (base {first['loss']:.4f}, ")
        for message in caplog.messages
    )


def test_a_run_with_evaluations_is_the_run_without_to_the_bit() -> None:
    _, seen, model = run(5, held_out(), evaluate_every=1)
    _, plain, bare = run(5, None)
    assert torch.equal(weights(model), weights(bare))
    assert [one.loss for one in seen.metrics] == [one.loss for one in plain.metrics]


def test_the_run_s_seed_makes_no_difference() -> None:
    base = told(run(1, held_out())[1])[0]
    model, seen = ToyModel(), recorder()
    other = replace(settings(1), seed=7)
    run_loop(parts(model), groups(), settings=other, hooks=seen.hooks(), held_out=held_out())
    assert told(seen)[0]["losses"] == base["losses"]


def test_after_a_resume_it_tells_the_same() -> None:
    whole = run(6, held_out(), evaluate_every=2)[1]
    model, first = ToyModel(), recorder()
    made = parts(model)
    changes = {"settings": settings(3, evaluate_every=2), "held_out": held_out()}
    run_loop(made, groups(), hooks=first.hooks(), **changes)
    [state] = [one for one in first.states if one.step == 3]
    second = recorder()
    changes["settings"] = settings(6, evaluate_every=2)
    run_loop(made, groups(3), hooks=second.hooks(), start=state, **changes)
    untimed = [
        [{key: value for key, value in fields.items() if key != "seconds"} for fields in told(seen)]
        for seen in (whole, first, second)
    ]
    assert untimed[0] == [*untimed[1][:2], *untimed[2]]
    assert steps(second) == [4, 6]


def test_a_finished_run_is_not_measured_again() -> None:
    end, _, model = run(2, held_out())
    assert end.best is not None
    assert end.best.last_step == 2
    again = run(2, held_out(), model=model, start=end)[1]
    assert (steps(again), again.saves) == ([], [])


def test_other_clips_are_measured_when_the_run_goes_on() -> None:
    end, _, model = run(2, held_out())
    end, seen, _ = run(4, held_out(identity="others"), model=model, start=end)
    assert steps(seen) == [2, 4]
    assert end.best is not None
    assert (end.best.identity, end.best.base_loss) == ("others", None)


def test_the_best_is_saved_at_once_and_known_to_its_checkpoint() -> None:
    _, seen, _ = run(7, held_out(), evaluate_every=2, save_every=3)
    falling = [fields["step"] for fields in told(seen) if fields["best_step"] == fields["step"] > 0]
    assert falling
    assert set(seen.saves) == {3, 6, 7, *falling}
    assert len(seen.saves) == len(set(seen.saves))
    for state in seen.states:
        assert state.best is not None
        expected = min(
            (fields for fields in told(seen) if fields["step"] <= state.step), key=lambda one: one["loss"]
        )
        assert (state.best.step, state.best.loss) == (expected["step"], expected["loss"])
        assert state.best.base_loss == told(seen)[0]["loss"]


def test_the_base_alone_is_no_reason_to_save() -> None:
    assert run(1, held_out())[1].saves == [1]


def test_what_cannot_be_measured_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    end, seen, model = run(4, calling(fail, at=2), evaluate_every=2)
    assert (end.step, steps(seen)) == (4, [0, 4])
    warning = "training goes on without the evaluation at step 2: cache file x is missing; run cache-latents"
    assert warning in caplog.messages
    assert torch.equal(weights(model), weights(run(4, None)[2]))


def test_what_fails_at_the_end_is_not_tried_twice() -> None:
    tried: list[int] = []

    def clips() -> Iterator[HeldOutClip]:
        tried.append(1)
        fail()
        yield from ()

    run(2, replace(held_out(), clips=clips), evaluate_every=2)
    assert len(tried) == 2  # at step 0 and step 2


def test_running_out_of_memory_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    end, seen, _ = run(2, held_out(), model=Filling(1), evaluate_every=1)
    assert (end.step, steps(seen)) == (2, [1, 2])
    assert (
        "training goes on without the evaluation at step 0: out of memory in the evaluation of" in caplog.text
    )


def test_a_loss_that_is_no_number_does_not_end_the_run() -> None:
    [clip, *_] = held_out().clips()
    bad = replace(clip, batch=with_latents(clip.batch, float("nan")))
    end, seen, _ = run(2, held_out(bad))
    assert (end.step, end.best, steps(seen)) == (2, None, [])


def test_a_signal_breaks_it_off_and_the_run_is_saved() -> None:
    seen = recorder()
    what = calling(lambda: os.kill(os.getpid(), signal.SIGTERM), at=2)
    with pytest.raises(InterruptedRunError, match="stopped after step 2, which is saved"):
        run(9, what, seen=seen, evaluate_every=2)
    assert (steps(seen), seen.saves) == ([0], [2])
    state, base = seen.states[-1], told(seen)[0]["loss"]
    assert state.best == BestEvaluation(0, base, base_loss=base, last_step=0, identity="toys")
    # It is made up for when the run goes on.
    assert steps(run(5, held_out(), start=state, evaluate_every=2)[1]) == [2, 4, 5]


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(2, calling(lambda: 1 / 0, at=1))


def test_what_is_measured_is_what_is_saved() -> None:
    entered: list[str] = []

    class Watching(ToyModel):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            entered.append("step" if self.training else "measure")
            return super().forward(*args, **kwargs)

    made = replace(parts(Watching()), weights=Switching(entered))
    [clip, *_] = held_out().clips()
    hooks = recorder().hooks()
    run_loop(made, groups(accumulation=1), settings=settings(1), hooks=hooks, held_out=held_out(clip))
    evaluation = ["in", *["measure"] * 8, "out"]
    assert entered[:12] == ["take up", *evaluation, "step"]
    assert entered[12:22] == evaluation
