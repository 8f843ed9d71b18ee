"""The loop makes a bare torch loop's steps, saves and renders when due, and ends well when it must."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_tune.errors import DataError, DeviceError, InterruptedRunError
from longcat_tune.training.interfaces import LoopHooks, LoopSettings, LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.training.step import draw, noise_generator, seed_dropout, to_device, training_step
from tests.training.toys import Recorder, ToyGroup, ToyModel, groups, parts, recorder, with_latents


def settings(max_steps: int, **changes: Any) -> LoopSettings:
    return LoopSettings(max_steps=max_steps, seed=42, **changes)


def train(max_steps: int, **changes: Any) -> tuple[ToyModel, Recorder]:
    model, seen = ToyModel(), recorder()
    run_loop(parts(model), groups(), settings=settings(max_steps, **changes), hooks=seen.hooks())
    return model, seen


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


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
        norm = torch.nn.utils.clip_grad_norm_(bare.model.parameters(), float("inf"))
        assert seen.metrics[step - 1].grad_norm == norm.item()
        if limit and method == "norm":
            torch.nn.utils.clip_grad_norm_(bare.model.parameters(), limit)
        elif limit:
            torch.nn.utils.clip_grad_value_(bare.model.parameters(), limit)
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
        def validate(self, step: int) -> None:
            model.eval()
            torch.manual_seed(step)
            torch.randn(10)

    model, _ = train(4)
    plain = weights(model)
    model = ToyModel()
    seen = Rendering([], [], [])
    run_loop(parts(model), groups(), settings=settings(4, validate_every=1), hooks=seen.hooks())
    assert torch.equal(weights(model), plain)


def poisoned(at: int) -> Iterator[ToyGroup]:
    for number, group in enumerate(groups()):
        if number == at:
            bad = with_latents(group.batches[1], float("nan"))
            yield replace(group, batches=(group.batches[0], bad))
        else:
            yield group


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_clips() -> None:
    model, seen = ToyModel(), recorder()
    with pytest.raises(DataError) as caught:
        run_loop(parts(model), poisoned(at=2), settings=settings(9), hooks=seen.hooks())
    message = str(caught.value)
    assert message.startswith("step 3: loss is nan for clips/5-0.mp4, nan for clips/5-1.mp4, which must be")
    assert "clips/4-0.mp4" not in message
    assert "lower learning_rate" in message
    assert torch.equal(weights(model), weights(train(2)[0]))


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    model, seen = ToyModel(), recorder()
    before = weights(model)
    model.mix.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DataError, match=r"step 1: gradient norm is (inf|nan) for clips/0-0\.mp4, clips/1-0"):
        run_loop(parts(model), groups(), settings=settings(9), hooks=seen.hooks())
    assert torch.equal(weights(model), before)


def sending(*signals: int, at: int) -> tuple[Recorder, LoopHooks]:
    """Hooks that send signals to this process at the end of a step."""
    seen = recorder()

    def on_step(metrics: Any) -> None:
        if metrics.step == at:
            for number in signals:
                os.kill(os.getpid(), number)

    return seen, replace(seen.hooks(), on_step=on_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_the_step_saves_and_ends_with_130(number: int) -> None:
    before = signal.getsignal(number)
    seen, hooks = sending(number, at=2)
    with pytest.raises(InterruptedRunError, match="stopped after step 2, which is saved") as caught:
        run_loop(parts(), groups(), settings=settings(9, validate_every=1), hooks=hooks)
    assert caught.value.exit_code == 130
    assert seen.saves == [2]
    assert seen.renders == [1]
    assert signal.getsignal(number) is before


def test_a_launcher_s_sigterm_after_ctrl_c_still_saves() -> None:
    seen, hooks = sending(signal.SIGINT, signal.SIGTERM, at=2)
    with pytest.raises(InterruptedRunError, match="which is saved"):
        run_loop(parts(), groups(), settings=settings(9), hooks=hooks)
    assert seen.saves == [2]


def test_the_second_ctrl_c_stops_at_once() -> None:
    seen, hooks = sending(signal.SIGINT, signal.SIGINT, at=2)
    with pytest.raises(InterruptedRunError, match="stopped at once"):
        run_loop(parts(), groups(), settings=settings(9), hooks=hooks)
    assert seen.saves == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_breaks_off_a_render_and_saves() -> None:
    seen = recorder()

    def validate(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the render went on")

    with pytest.raises(InterruptedRunError, match="stopped after step 2"):
        run_loop(
            parts(),
            groups(),
            settings=settings(9, validate_every=2),
            hooks=replace(seen.hooks(), validate=validate),
        )
    assert seen.saves == [2]


def test_a_signal_in_the_last_step_changes_nothing() -> None:
    seen, hooks = sending(signal.SIGTERM, at=3)
    assert run_loop(parts(), groups(), settings=settings(3), hooks=hooks).step == 3
    assert seen.saves == [3]


def test_a_failed_render_costs_no_steps() -> None:
    seen = recorder()

    def validate(step: int) -> None:
        raise DeviceError("no memory for the render")

    with pytest.raises(DeviceError, match="no memory for the render"):
        run_loop(
            parts(),
            groups(),
            settings=settings(9, validate_every=4),
            hooks=replace(seen.hooks(), validate=validate),
        )
    assert seen.saves == [4]


def raising(error: BaseException) -> Callable[..., Tensor]:
    def forward(*args: object, **kwargs: object) -> Tensor:
        raise error

    return forward


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_tells_what_to_lower_in_order(error: BaseException) -> None:
    model, seen = ToyModel(), recorder()
    model.forward = raising(error)
    with pytest.raises(DeviceError, match="out of memory in training step 1") as caught:
        run_loop(parts(model), groups(), settings=settings(9), hooks=seen.hooks())
    advice = (
        r"validation_resolution.*num_video_frames.*lora_rank.*enable_group_offload.*int8-quanto.*fp8-torchao"
    )
    assert re.search(advice, str(caught.value))
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback() -> None:
    model = ToyModel()
    model.forward = raising(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        run_loop(parts(model), groups(), settings=settings(9), hooks=recorder().hooks())


def test_the_compute_context_is_entered_for_every_forward() -> None:
    dtypes = []

    class Watching(ToyModel):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            dtypes.append(torch.is_autocast_enabled("cpu"))
            return super().forward(*args, **kwargs)

    made = replace(parts(Watching()), compute=lambda: torch.autocast("cpu", torch.bfloat16))
    run_loop(made, groups(), settings=settings(2), hooks=recorder().hooks())
    assert dtypes == [True] * 4


def test_ctrl_c_in_the_first_render_claims_no_saved_step() -> None:
    seen = recorder()

    def validate(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    hooks = replace(seen.hooks(), validate=validate)
    with pytest.raises(InterruptedRunError, match="stopped before the first step; the same command"):
        run_loop(parts(), groups(), settings=settings(9, validate_first=True), hooks=hooks)
    assert seen.saves == []
