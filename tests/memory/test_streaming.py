"""Streamed blocks compute what resident ones do, to the bit, in whatever order they are used."""

from __future__ import annotations

import copy

import pytest
import torch

from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream
from tests.memory.late_lane import LateLane
from tests.memory.toy_blocks import (
    CPU,
    KINDS,
    WIDTH,
    assert_equal,
    freeze,
    host_bytes,
    in_int8,
    look,
    resident_results,
    step,
    streamed,
    toy_blocks,
)


@pytest.mark.parametrize("which", [[5], [1, 3, 5], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("interval", "offload"), [(None, False), (1, False), (1, True), (2, False), (2, True)]
)
def test_loss_and_gradients_equal_the_resident_run_to_the_bit(which, kind, interval, offload, monkeypatch):
    monkeypatch.setattr("longcat_tune.memory.streaming.Lane", LateLane)
    monkeypatch.setattr("longcat_tune.memory.boundaries.Lane", LateLane)
    blocks = toy_blocks()
    resident, seen = resident_results()
    stream = streamed(blocks, which, **kind)
    if interval is not None:
        boundaries = Boundaries(CPU, at_least_bytes=0) if offload else None
        enable_recompute(blocks, interval=interval, boundaries=boundaries)
    before = host_bytes(stream)
    assert_equal(step(blocks), resident)
    assert torch.equal(look(blocks), seen)
    assert_equal(step(blocks), resident)
    # The weights went one way.
    assert all(torch.equal(one, other) for one, other in zip(host_bytes(stream), before, strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("offload", [False, True])
def test_quantized_blocks_travel_in_their_few_bits_and_compute_the_same(kind, offload, monkeypatch):
    monkeypatch.setattr("longcat_tune.memory.streaming.Lane", LateLane)
    monkeypatch.setattr("longcat_tune.memory.boundaries.Lane", LateLane)
    blocks = toy_blocks()
    for block in blocks:
        freeze(block, in_int8)
    resident, seen = step(blocks), look(blocks)
    stream = BlockStream(device=CPU, **kind)
    for block in blocks:
        stream.add(block)
    enable_recompute(blocks, boundaries=Boundaries(CPU, at_least_bytes=0) if offload else None)
    dense = sum(layer.weight.numel() * 4 for layer in blocks.modules() if isinstance(layer, FrozenLinear))
    assert stream.host_bytes < 0.6 * dense
    for _ in range(2):
        assert_equal(step(blocks), resident)
        assert torch.equal(look(blocks), seen)


def test_an_autocast_step_equals_the_resident_one():
    blocks = toy_blocks(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resident = step(copy.deepcopy(blocks))
        streamed(blocks)
        assert_equal(step(blocks), resident)


def test_a_step_fetches_each_block_twice_less_what_stays_for_the_turn():
    blocks = toy_blocks()
    stream = streamed(blocks, slots=2)
    enable_recompute(blocks)
    step(blocks)
    assert stream.counts.fetches == 6 + 4
    step(blocks)
    assert stream.counts.fetches == (6 + 4) + (4 + 4)
    assert stream.counts.waited == 1


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("interval", [None, 1, 2])
def test_the_order_of_single_layers_is_learned_in_two_steps(slots, interval):
    blocks = toy_blocks()
    stream = streamed(blocks, slots=slots, by_layer=True)
    if interval is not None:
        enable_recompute(blocks, interval=interval)
    for _ in range(2):
        step(blocks)
    waited = stream.counts.waited
    for _ in range(2):
        step(blocks)
    assert stream.counts.waited == waited


def test_forward_passes_alone_are_fetched_ahead_from_the_end_to_the_next_beginning():
    blocks = toy_blocks()
    stream = streamed(blocks)
    for _ in range(4):
        look(blocks)
    # At the very beginning, and when it was not known yet that the last block is followed by the first.
    assert stream.counts.waited == 2


def test_a_step_may_follow_a_render():
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    streamed(blocks)
    with torch.inference_mode():
        look(blocks)
    assert_equal(step(blocks), resident)


def test_evaluating_between_two_steps_costs_at_most_a_wrong_guess():
    blocks = toy_blocks()
    stream = streamed(blocks)
    enable_recompute(blocks)
    for _ in range(2):
        step(blocks)
        look(blocks)
    waited = stream.counts.waited
    step(blocks)
    look(blocks)
    assert stream.counts.waited <= waited + 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 5, 9, 14, 17])
def test_an_error_anywhere_leaves_the_stream_usable(nth, late, monkeypatch):
    if late:
        monkeypatch.setattr("longcat_tune.memory.streaming.Lane", LateLane)
        monkeypatch.setattr("longcat_tune.memory.boundaries.Lane", LateLane)
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    stream, boundaries = streamed(blocks), Boundaries(CPU, at_least_bytes=0)
    enable_recompute(blocks, boundaries=boundaries)
    with monkeypatch.context() as patch:
        calls = 0
        copied = type(stream.lane).copy

        def failing(lane, target, source):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return copied(lane, target, source)

        patch.setattr(type(stream.lane), "copy", failing)
        with pytest.raises(torch.OutOfMemoryError):
            step(blocks)
    for _ in range(2):
        assert_equal(step(blocks), resident)


def test_an_error_of_a_block_leaves_the_stream_usable():
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    streamed(blocks)
    with pytest.raises(RuntimeError, match="shape"):
        blocks[3](torch.ones(1, 2, WIDTH + 1), torch.ones(1, WIDTH))
    assert_equal(step(blocks), resident)
