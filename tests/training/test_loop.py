"""The loop makes a bare torch loop's steps, saves and renders when due, and ends well when it must."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.weighting import weighting
from longcat_tune.training.ema import Ema
from longcat_tune.training.interfaces import Abandoning, LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.training.step import draw, noise_generator, seed_dropout, to_device, training_step
from tests.training.toys import (
    Filling,
    Recorder,
    Switching,
    ToyModel,
    groups,
    parts,
    recorder,
    settings,
    train,
    untrained,
    weights,
)


@pytest.mark.parametrize(
    ("method", "limit"), [("norm", 0.05), ("norm", 1.0), ("norm", 0.0), ("value", 0.01), ("value", 0.0)]
)
def test_steps_equal_a_bare_loop_to_the_bit(method: Any, limit: float) -> None:
    model, seen = train(6, max_grad_norm=limit, grad_clip_method=method)
    bare = parts(ToyModel())
    for step, group in enumerate(islice(groups(), 6), start=1):
        for index, batch in enumerate(group.batches):
            seed_dropout(42, step=step, micro_batch=index)
            sigma, noise = draw(batch, bare.draw_sigma, noise_generator(42, step=step, micro_batch=index))
            moved = to_device(batch, torch.device("cpu"))
            output = training_step(bare.model, moved, sigma_B=sigma, noise_BCTHW=noise)
            (output.loss_B.mean() / len(group.batches)).backward()
        norm = torch.nn.utils.clip_grad_norm_(bare.parameters, float("inf"))
        assert seen.metrics[step - 1].grad_norm == norm.item()
        if limit and method == "norm":
            torch.nn.utils.clip_grad_norm_(bare.parameters, limit)
        elif limit:
            torch.nn.utils.clip_grad_value_(bare.parameters, limit)
        bare.optimizer.step()
        bare.optimizer.zero_grad()
        bare.schedule.step()
    assert torch.equal(weights(model), weights(bare.model))


def test_metrics_tell_what_the_step_did() -> None:
    _, seen = train(5)
    first = seen.metrics[0]
    assert [metrics.step for metrics in seen.metrics] == [1, 2, 3, 4, 5]
    assert [metrics.epoch for metrics in seen.metrics] == [0, 0, 0, 1, 1]
    assert [metrics.learning_rate for metrics in seen.metrics] == [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2]
    assert first.samples == 3
    assert 0 < first.sigma_mean < 1
    assert first.seconds > 0
    # Micro batches weigh the same, whatever their size.
    losses = []
    model = parts(ToyModel())
    for index, batch in enumerate(next(groups()).batches):
        seed_dropout(42, step=1, micro_batch=index)
        sigma, noise = draw(batch, model.draw_sigma, noise_generator(42, step=1, micro_batch=index))
        output = training_step(
            model.model, to_device(batch, torch.device("cpu")), sigma_B=sigma, noise_BCTHW=noise
        )
        losses.append(output.loss_B.mean())
    assert first.loss == torch.stack(losses).mean().item()


def test_checkpoints_and_renders_come_when_due() -> None:
    _, seen = train(7, save_every=3, validate_every=2, validate_first=True)
    assert seen.saves == [3, 6, 7]
    assert seen.renders == [0, 2, 4, 6, 7]
    assert seen.calls.index(("save", 6)) < seen.calls.index(("validate", 6))
    assert seen.states[-1] == LoopState(step=7, epoch=2, cursor=(7,))


def test_renders_by_epoch_come_once_after_its_last_step() -> None:
    _, seen = train(8, validate_every_epochs=1)
    assert seen.renders == [3, 6, 8]
    _, seen = train(8, validate_every_epochs=2, validate_every=3)
    assert seen.renders == [3, 6, 8]


def test_without_renders_there_are_none() -> None:
    assert train(2)[1].calls == [("save", 2)]


def test_a_run_that_is_complete_does_nothing() -> None:
    seen = recorder()
    start = LoopState(step=5, epoch=1, cursor=(5,))
    end = run_loop(
        parts(), groups(5), settings=settings(5, validate_first=True), hooks=seen.hooks(), start=start
    )
    assert end == start
    assert seen.saves == []


def test_groups_that_end_end_the_run() -> None:
    seen = recorder()
    end = run_loop(parts(), islice(groups(), 2), settings=settings(9), hooks=seen.hooks())
    assert (end.step, seen.saves) == (2, [2])


def test_a_render_in_between_changes_nothing() -> None:
    class Rendering(Recorder):
        def validate(self, step: int, _abandoning: Abandoning) -> None:
            model.eval()
            torch.manual_seed(step)
            torch.randn(10)

    model, _ = train(4)
    plain = weights(model)
    model = ToyModel()
    seen = Rendering([], [], [])
    run_loop(parts(model), groups(), settings=settings(4, validate_every=1), hooks=seen.hooks())
    assert torch.equal(weights(model), plain)


def test_losses_are_told_by_noise_level() -> None:
    _, seen = train(5, bands_every=2)
    told = [fields for name, fields in seen.events if name == "sigma_bands"]
    assert [fields["step"] for fields in told] == [2, 4, 5]
    assert [sum(fields["counts"]) for fields in told] == [6, 6, 3]
    every = [
        loss * count
        for fields in told
        for loss, count in zip(fields["losses"], fields["counts"], strict=True)
        if loss is not None
    ]
    assert all(0 < one < 100 for one in every)


def test_regularisation_data_are_trained_on_and_have_a_loss_of_their_own() -> None:
    model, seen = ToyModel(dropout=0.0), recorder()
    with_known = (
        replace(group, batches=(group.batches[0], replace(group.batches[1], keeps_base=True)))
        for group in groups()
    )
    made = replace(parts(model), as_base=partial(untrained, model))
    run_loop(made, with_known, settings=settings(3, bands_every=3), hooks=seen.hooks())
    [told] = [fields for name, fields in seen.events if name == "sigma_bands"]
    assert sum(told["counts"]) == 3
    assert [one.samples for one in seen.metrics] == [3, 3, 3]
    bands = [loss * count for loss, count in zip(told["losses"], told["counts"], strict=True) if count]
    assert sum(one.loss for one in seen.metrics) == pytest.approx(sum(bands))
    assert all(one.regularisation_loss != one.loss for one in seen.metrics)


def test_a_step_on_regularisation_data_alone_has_no_loss_but_theirs() -> None:
    model, seen = ToyModel(dropout=0.0), recorder()
    known = (
        replace(group, batches=tuple(replace(batch, keeps_base=True) for batch in group.batches))
        for group in groups()
    )
    made = replace(parts(model), as_base=partial(untrained, model))
    run_loop(made, known, settings=settings(2, bands_every=2), hooks=seen.hooks())
    assert [one.loss for one in seen.metrics] == [None, None]
    assert all(isinstance(one.regularisation_loss, float) for one in seen.metrics)
    assert not [name for name, _ in seen.events if name == "sigma_bands"]


def test_weights_by_noise_level_and_huber_reach_the_gradient() -> None:
    density = SigmaDensity()
    model, seen = ToyModel(), recorder()
    made = replace(parts(model), weigh=weighting("bell", density), huber_c=0.2)
    run_loop(made, groups(), settings=settings(1, max_grad_norm=0.0), hooks=seen.hooks())
    bare = ToyModel()
    objectives = []
    for index, batch in enumerate(next(groups()).batches):
        seed_dropout(42, step=1, micro_batch=index)
        sigma, noise = draw(batch, density.sample, noise_generator(42, step=1, micro_batch=index))
        output = training_step(
            bare, to_device(batch, torch.device("cpu")), sigma_B=sigma, noise_BCTHW=noise, huber_c=0.2
        )
        objectives.append((weighting("bell", density)(sigma) * output.loss_B).mean())
    objective = torch.stack(objectives).mean()
    objective.backward()
    gradients = [parameter.grad for parameter in bare.parameters() if parameter.grad is not None]
    assert seen.metrics[0].loss == pytest.approx(objective.item(), rel=1e-6)
    assert seen.metrics[0].grad_norm == pytest.approx(torch.nn.utils.get_total_norm(gradients).item())


def test_what_is_saved_and_rendered_is_what_the_weights_say() -> None:
    entered: list[str] = []

    class Watching(Recorder):
        def save(self, state: LoopState) -> None:
            entered.append(f"save {state.step}")

        def validate(self, step: int, _abandoning: Abandoning) -> None:
            entered.append(f"render {step}")

    made = replace(parts(), weights=Switching(entered))
    seen = Watching([], [], [])
    run_loop(made, groups(), settings=settings(2, save_every=1, validate_first=True), hooks=seen.hooks())
    expected = "take up, in, render 0, out, in, save 1, out, in, save 2, out, in, render 2, out"
    assert ", ".join(entered) == expected


def test_the_average_takes_in_every_step_that_was_made() -> None:
    model, seen = Filling(3), recorder()
    ema = Ema(model.named_parameters(), decay=0.9)
    run_loop(replace(parts(model), ema=ema), groups(), settings=settings(4), hooks=seen.hooks())
    assert ema.updates == 3


def test_the_compute_context_is_entered_for_every_forward() -> None:
    dtypes = []

    class Watching(ToyModel):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            dtypes.append(torch.is_autocast_enabled("cpu"))
            return super().forward(*args, **kwargs)

    made = replace(parts(Watching()), compute=lambda: torch.autocast("cpu", torch.bfloat16))
    run_loop(made, groups(), settings=settings(2), hooks=recorder().hooks())
    assert dtypes == [True] * 4
