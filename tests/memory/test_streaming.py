"""Streamed blocks compute what resident ones do, to the bit; no more of them are on the device than slots."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longcat_tune.errors import UserError
from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream, spread_evenly
from tests.memory.late_lane import LateLane

CPU = torch.device("cpu")
WIDTH = 16


class Float32Island(nn.Linear):
    """Like the modulation's layers: float32 whatever the weight."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return nn.functional.linear(x.float(), self.weight.float(), self.bias.float())


class ToyBlock(nn.Module):
    """Two branches, one of which no gradient reaches, and something trained."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.island = Float32Island(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.trained = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        inner = torch.relu(self.wide(self.norm(x))) * (1 + self.island(given).mean())
        return x + self.narrow(inner) + nn.functional.linear(x, self.trained.weight)


def toy_blocks(count: int = 6, dtype: torch.dtype = torch.float32) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(ToyBlock() for _ in range(count)).to(dtype).requires_grad_(requires_grad=False)
    for block in blocks:
        block.norm.float()
        block.trained.weight = nn.Parameter(block.trained.weight.float())
    return blocks


def streamed(blocks: nn.ModuleList, which: list[int] | None = None, **options) -> BlockStream:
    stream = BlockStream(device=CPU, **options)
    for block in [blocks[number] for number in which] if which is not None else blocks:
        trained = block.trained
        del block.trained
        freeze_linears(block, in_float32=(Float32Island,))
        block.trained = trained
        stream.add(block)
    return stream


def step(blocks: nn.ModuleList) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    x, given = torch.randn(2, 5, WIDTH), torch.randn(3, WIDTH)
    for block in blocks:
        block.trained.weight.grad = None
    for block in blocks:
        x = block(x, given)
    loss = x.square().mean()
    loss.backward()
    return loss.detach(), [block.trained.weight.grad.clone() for block in blocks]


def look(blocks: nn.ModuleList) -> Tensor:
    """A forward pass alone, as in an evaluation."""
    with torch.no_grad():
        x = torch.ones(1, 2, WIDTH)
        for block in blocks:
            x = block(x, torch.ones(1, WIDTH))
    return x


@cache
def resident_results() -> tuple[tuple[Tensor, list[Tensor]], Tensor]:
    blocks = toy_blocks()
    return step(blocks), look(blocks)


def assert_equal(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(one[0], other[0])
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine, theirs)


def host_bytes(stream: BlockStream) -> list[Tensor]:
    return [buffer.memory.clone() for unit in stream._units for buffer in unit.buffers]


KINDS = [
    {"slots": 1},
    {"slots": 2},
    {"slots": 3},
    {"slots": 8},
    {"slots": 1, "group": 4},
    {"slots": 2, "group": 2},
    {"slots": 3, "group": 4},
    {"slots": 1, "by_layer": True},
    {"slots": 2, "by_layer": True},
    {"slots": 5, "by_layer": True},
]


@pytest.mark.parametrize("which", [[5], [1, 3, 5], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("interval", "offload"), [(None, False), (1, False), (1, True), (2, False), (2, True)]
)
@pytest.mark.parametrize("late", [False, True])
def test_loss_and_gradients_equal_the_resident_run_to_the_bit(
    which, kind, interval, offload, late, monkeypatch
):
    if late:
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


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_more_units_than_slots_are_on_the_device_in_forward_and_backward(kind):
    blocks = toy_blocks()
    stream = streamed(blocks, **kind)
    enable_recompute(blocks)
    seen = []
    for layer in blocks.modules():
        if isinstance(layer, FrozenLinear):
            fetch = layer.fetch

            def watched(recording, fetch=fetch, layer=layer):
                fetch(recording)
                slots = {slot.memory.untyped_storage().data_ptr() for slot in stream._slots}
                living = {live.untyped_storage().data_ptr() for live in layers_in_use(blocks)}
                assert living - hosts <= slots
                assert layer.live_weight().untyped_storage().data_ptr() in slots
                seen.append(len(stream.resident_units()))

            layer.fetch = watched
    hosts = {buffer.memory.untyped_storage().data_ptr() for u in stream._units for buffer in u.buffers}
    step(blocks)
    units = len(stream._units)
    assert max(seen) == min(kind["slots"], units)
    assert sum(slot.memory.numel() for slot in stream._slots) == stream.device_bytes
    assert stream.device_bytes == max(seen) * max(unit.num_bytes for unit in stream._units)


def layers_in_use(blocks: nn.ModuleList) -> list[Tensor]:
    return [
        tensor
        for layer in blocks.modules()
        if isinstance(layer, FrozenLinear)
        for tensor in layer._live.values()
    ]


def test_backward_keeps_no_copy_of_a_weight():
    blocks = toy_blocks(2)
    streamed(blocks)
    x = torch.randn(1, 4, WIDTH)
    given = torch.randn(1, WIDTH)
    blocks[1](blocks[0](x, given), given)
    before = {id(one) for one in gc.get_objects() if isinstance(one, Tensor)}
    out = blocks[1](blocks[0](x.clone().requires_grad_(), given), given)
    new = [one for one in gc.get_objects() if isinstance(one, Tensor) and id(one) not in before]
    wide = (2 * WIDTH, WIDTH)
    assert not [one for one in new if tuple(one.shape) in {wide, wide[::-1]}]
    assert out.grad_fn is not None


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


def test_a_frozen_layer_moves_with_its_module():
    block = toy_blocks(1)[0]
    freeze_linears(block)
    assert block.double().wide(torch.ones(1, WIDTH).double()).dtype == torch.float64


def test_weights_leave_where_they_were_as_soon_as_they_are_streamed():
    blocks = toy_blocks(2)
    originals = [weakref.ref(blocks[number].wide.weight) for number in range(2)]
    streamed(blocks)
    gc.collect()
    assert [original() for original in originals] == [None, None]


def test_only_weights_are_streamed():
    blocks = toy_blocks(2)
    stream = streamed(blocks)
    weights = [layer.weight for layer in blocks.modules() if isinstance(layer, FrozenLinear)]
    assert stream.host_bytes == sum(weight.nbytes for weight in weights)
    hosts = {buffer.memory.untyped_storage().data_ptr() for u in stream._units for buffer in u.buffers}
    there = {name for name, one in blocks.named_parameters() if one.untyped_storage().data_ptr() in hosts}
    assert there == {f"{i}.{name}.weight" for i in range(2) for name in ("wide", "narrow", "island")}


def test_weights_kept_in_a_folder_are_read_from_there(tmp_path: Path):
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    stream = streamed(blocks, folder=tmp_path / "weights", group=2)
    enable_recompute(blocks)
    assert_equal(step(blocks), resident)
    assert all(buffer.locked is None for unit in stream._units for buffer in unit.buffers)
    # Nothing has to be cleared away, however the run ends.
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_folder_that_cannot_be_had_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder must be"):
        streamed(toy_blocks(), folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("count", "depth", "numbers"),
    [(1, 48, [24]), (2, 4, [1, 3]), (4, 48, [6, 18, 30, 42]), (3, 4, [0, 2, 3]), (4, 4, [0, 1, 2, 3])],
)
def test_streamed_blocks_are_spread_evenly(count, depth, numbers):
    assert spread_evenly(count, depth) == numbers


def test_every_number_of_blocks_is_spread_over_different_ones():
    for depth in range(1, 49):
        for count in range(depth + 1):
            numbers = spread_evenly(count, depth)
            assert len(set(numbers)) == count
            assert all(0 <= number < depth for number in numbers)


@pytest.mark.parametrize("options", [{"slots": 0}, {"group": 0}, {"by_layer": True, "group": 2}])
def test_impossible_streams_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        BlockStream(device=CPU, **options)
