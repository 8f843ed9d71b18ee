"""Signals, losses that are no numbers and a full device end a run well, or do not end it."""

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
from longcat_tune.training.interfaces import Abandoning, LoopHooks, LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.training.step import draw, noise_generator, seed_dropout, to_device, training_step
from longcat_tune.training.update import try_largest
from tests.training.toys import (
    Filling,
    Recorder,
    ToyGroup,
    ToyModel,
    groups,
    parts,
    recorder,
    settings,
    train,
    weights,
    with_latents,
)


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
    before = signal.getsignal(signal.SIGINT)
    seen, hooks = sending(signal.SIGINT, signal.SIGINT, at=2)
    with pytest.raises(InterruptedRunError, match="stopped at once"):
        run_loop(parts(), groups(), settings=settings(9), hooks=hooks)
    assert seen.saves == []
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_breaks_off_a_render_and_saves() -> None:
    seen = recorder()

    def validate(step: int, abandoning: Abandoning) -> None:
        with abandoning():
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

    def validate(step: int, _abandoning: Abandoning) -> None:
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
def test_out_of_memory_three_times_tells_what_to_lower_in_order(error: BaseException) -> None:
    model, seen = ToyModel(), recorder()
    model.forward = raising(error)
    with pytest.raises(DeviceError, match="out of memory in steps 1 to 3, one after another") as caught:
        run_loop(parts(model), groups(), settings=settings(9), hooks=seen.hooks())
    advice = (
        "memory_plan auto.*validation_resolution.*num_video_frames.*lora_rank.*gradient_checkpointing_offload"
        ".*feed_forward_chunk_size.*enable_group_offload.*int8-quanto.*fp8-torchao"
    )
    assert re.search(advice, str(caught.value))
    assert "\n" not in str(caught.value)
    assert seen.saves == []
    assert [name for name, _ in seen.events] == ["step_skipped"] * 3


def test_a_step_that_does_not_fit_is_skipped_and_leaves_no_trace() -> None:
    # Step 2 fails in its second micro batch, steps 4 and 6 in their first; three, but not in a row.
    model, seen = Filling(4, 7, 10), recorder()
    end = run_loop(parts(model), groups(), settings=settings(7, save_every=2), hooks=seen.hooks())
    assert end == LoopState(step=7, epoch=2, cursor=(7,))
    assert [metrics.step for metrics in seen.metrics] == [1, 3, 5, 7]
    assert [metrics.learning_rate for metrics in seen.metrics] == [2.5e-3, 7.5e-3, 1e-2, 1e-2]
    assert seen.saves == [2, 4, 6, 7]
    skipped = [fields for name, fields in seen.events if name == "step_skipped"]
    assert [fields["step"] for fields in skipped] == [2, 4, 6]
    assert skipped[0]["reason"] == "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert skipped[0]["clip_ids"] == ("clips/2-0.mp4", "clips/3-0.mp4", "clips/3-1.mp4")

    # Nothing of the skipped steps is left: neither gradients nor random numbers.
    bare = parts(ToyModel())
    for number, group in enumerate(islice(groups(), 7), start=1):
        if number not in {2, 4, 6}:
            for index, batch in enumerate(group.batches):
                seed_dropout(42, step=number, micro_batch=index)
                drawn = draw(batch, bare.draw_sigma, noise_generator(42, step=number, micro_batch=index))
                moved = to_device(batch, torch.device("cpu"))
                output = training_step(bare.model, moved, sigma_B=drawn[0], noise_BCTHW=drawn[1])
                (output.loss_B.mean() / len(group.batches)).backward()
            torch.nn.utils.clip_grad_norm_(bare.model.parameters(), 1.0)
            bare.optimizer.step()
            bare.optimizer.zero_grad()
        bare.schedule.step()
    assert torch.equal(weights(model), weights(bare.model))


def test_a_run_ended_by_skips_stands_before_them() -> None:
    seen = recorder()
    with pytest.raises(DeviceError, match="in steps 3 to 5"):
        run_loop(parts(Filling(5, 6, 7)), groups(), settings=settings(9), hooks=seen.hooks())
    assert seen.states == [LoopState(step=2, epoch=0, cursor=(2,))]


def test_a_checkpoint_among_skips_is_not_followed_by_an_earlier_one() -> None:
    seen = recorder()
    with pytest.raises(DeviceError, match="in steps 3 to 5"):
        run_loop(parts(Filling(5, 6, 7)), groups(), settings=settings(9, save_every=4), hooks=seen.hooks())
    assert seen.saves == [4]


def test_the_largest_batch_is_tried_and_changes_nothing() -> None:
    plain, _ = train(3)
    model, seen = ToyModel(), recorder()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made = parts(model)
    largest = next(groups(start=30)).batches[1]
    run_loop(made, groups(), settings=settings(0), hooks=seen.hooks(), largest=largest)
    assert torch.equal(torch.get_rng_state(), before)
    try_largest(made, largest, settings(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    run_loop(made, groups(), settings=settings(3), hooks=seen.hooks(), largest=largest)
    assert torch.equal(weights(model), weights(plain))


def test_a_largest_batch_that_does_not_fit_ends_the_run_before_anything_else() -> None:
    model, seen = Filling(1), recorder()
    largest = next(groups()).batches[1]
    with pytest.raises(
        DeviceError, match=r"a try of the largest batch of this run, clips/1-0\.mp4, clips/1-1"
    ):
        run_loop(
            parts(model),
            groups(),
            settings=settings(9, validate_first=True),
            hooks=seen.hooks(),
            largest=largest,
        )
    assert seen.calls == []


def test_other_errors_keep_their_traceback() -> None:
    model = ToyModel()
    model.forward = raising(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        run_loop(parts(model), groups(), settings=settings(9), hooks=recorder().hooks())


def test_ctrl_c_in_the_first_render_claims_no_saved_step() -> None:
    seen = recorder()

    def validate(step: int, abandoning: Abandoning) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with abandoning():
            pytest.fail("it was begun all the same")

    hooks = replace(seen.hooks(), validate=validate)
    with pytest.raises(InterruptedRunError, match="stopped before the first step; the same command"):
        run_loop(parts(), groups(), settings=settings(9, validate_first=True), hooks=hooks)
    assert seen.saves == []
