"""Streamed blocks compute what resident ones do, to the bit; no more of them are on the device than slots."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream

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
        self.trained = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        inner = torch.relu(self.wide(x)) * (1 + self.island(given).mean())
        return x + self.narrow(inner) + nn.functional.linear(x, self.trained.weight)


def toy_blocks(count: int = 6, dtype: torch.dtype = torch.float32) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(ToyBlock() for _ in range(count)).to(dtype).requires_grad_(requires_grad=False)
    for block in blocks:
        block.trained.weight = nn.Parameter(block.trained.weight.float())
    return blocks


def streamed(blocks: nn.ModuleList, which: list[int] | None = None, **options) -> BlockStream:
    chosen = [blocks[number] for number in which] if which is not None else list(blocks)
    for block in chosen:
        trained = block.trained
        del block.trained
        freeze_linears(block, in_float32=(Float32Island,))
        block.trained = trained
    return BlockStream(chosen, device=CPU, **options)


def step(blocks: nn.ModuleList, stream: BlockStream | None = None) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    x, given = torch.randn(2, 5, WIDTH), torch.randn(3, WIDTH)
    for block in blocks:
        block.trained.weight.grad = None
    for block in blocks:
        x = block(x, given)
    loss = x.square().mean()
    loss.backward()
    return loss.detach(), [block.trained.weight.grad.clone() for block in blocks]


def assert_equal(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(one[0], other[0])
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("which", [[0], [5], [1, 3, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("slots", [2, 3, 8])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("interval", [None, 1, 2])
@pytest.mark.parametrize("offload", [False, True])
def test_loss_and_gradients_equal_the_resident_run_to_the_bit(which, slots, group, interval, offload):
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    stream = streamed(blocks, which, slots=slots, group=group)
    if interval is not None:
        boundaries = Boundaries(CPU, at_least_bytes=0) if offload else None
        enable_recompute(blocks, interval=interval, boundaries=boundaries)
    for _ in range(3):
        assert_equal(step(blocks, stream), resident)


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


def test_forward_passes_alone_are_fetched_ahead_from_the_end_to_the_next_beginning():
    blocks = toy_blocks()
    stream = streamed(blocks)
    with torch.no_grad():
        for _ in range(3):
            x = torch.ones(1, 2, WIDTH)
            for block in blocks:
                x = block(x, torch.ones(1, WIDTH))
    assert stream.counts.waited == 1


def test_no_more_blocks_than_slots_are_on_the_device_in_forward_and_backward():
    blocks = toy_blocks()
    stream = streamed(blocks, slots=2)
    enable_recompute(blocks)
    seen = []
    for layer in blocks.modules():
        if isinstance(layer, FrozenLinear):
            fetch = layer.fetch

            def watched(recording, fetch=fetch):
                fetch(recording)
                seen.append(len(stream.resident_units()))

            layer.fetch = watched
    step(blocks)
    assert max(seen) == 2
    assert stream.device_bytes == 2 * stream.host_bytes // 6


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


def test_host_buffers_are_never_written_and_an_error_leaves_the_stream_usable():
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    stream = streamed(blocks)
    bytes_before = [unit.buffer.memory.clone() for unit in stream._units]
    with pytest.raises(RuntimeError, match="shapes"):
        blocks[3](torch.ones(1, 2, WIDTH + 1), torch.ones(1, WIDTH))
    assert_equal(step(blocks), resident)
    for unit, before in zip(stream._units, bytes_before, strict=True):
        assert torch.equal(unit.buffer.memory, before)


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
