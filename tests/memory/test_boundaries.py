"""Inputs of recomputed blocks leave the device, come back equal, and their host memory is used again."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.recompute import enable_recompute
from tests.memory.late_lane import LateLane


class Watched(nn.Linear):
    """A block that remembers, weakly, the inputs it was given."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.inputs: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(weakref.ref(x))
        return super().forward(x).tanh()


def through(blocks: nn.ModuleList) -> Tensor:
    x = torch.ones(4, 8)
    for block in blocks:
        x = block(x)
    return x.sum()


def offloaded(count: int = 4) -> tuple[nn.ModuleList, Boundaries]:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Watched() for _ in range(count))
    boundaries = Boundaries(torch.device("cpu"), at_least_bytes=0)
    enable_recompute(blocks, boundaries=boundaries)
    return blocks, boundaries


def test_no_input_stays_alive_between_forward_and_backward():
    blocks, _ = offloaded()
    loss = through(blocks)
    gc.collect()
    assert [ref() is None for block in blocks[1:] for ref in block.inputs] == [True] * 3
    loss.backward()


def test_gradients_are_those_without_offload():
    blocks, _ = offloaded()
    through(blocks).backward()
    torch.manual_seed(0)
    plain = nn.ModuleList(Watched() for _ in range(4))
    through(plain).backward()
    for mine, theirs in zip(blocks.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_host_memory_is_used_again_after_backward_and_after_a_graph_that_was_let_go():
    blocks, boundaries = offloaded()
    through(blocks).backward()
    held = boundaries.host_bytes
    assert held == 4 * 4 * 8 * 4
    for _ in range(3):
        through(blocks)
        gc.collect()
        through(blocks).backward()
    assert boundaries.host_bytes == held


def test_small_tensors_stay():
    blocks, _ = offloaded()
    boundaries = Boundaries(torch.device("cpu"), at_least_bytes=1 << 20)
    enable_recompute(blocks, boundaries=boundaries)
    through(blocks).backward()
    assert boundaries.host_bytes == 0


class Strided(nn.Module):
    """Tells how its input lies in memory, in forward and in recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        return (x * self.weight).tanh()


@pytest.mark.parametrize(
    "lay", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, None].transpose(0, 2)]
)
def test_a_tensor_comes_back_in_the_order_it_lay_in(lay):
    block = Strided()
    boundaries = Boundaries(torch.device("cpu"), at_least_bytes=0)
    enable_recompute(nn.ModuleList([block]), boundaries=boundaries)
    x = lay(torch.randn(8, 8, requires_grad=True))
    block(x).sum().backward()
    assert block.seen == [x.stride()] * 2


def test_a_tensor_with_gaps_stays():
    block = Strided()
    boundaries = Boundaries(torch.device("cpu"), at_least_bytes=0)
    enable_recompute(nn.ModuleList([block]), boundaries=boundaries)
    x = torch.randn(8, 16, requires_grad=True)
    block(x[:, ::2]).sum().backward()
    assert block.seen == [(16, 2), (16, 2)]
    assert boundaries.host_bytes == 0


def test_steps_of_several_sizes_hold_no_more_than_the_largest():
    blocks, boundaries = offloaded()
    for size in (3, 4, 2, 4, 3):
        x = torch.ones(size, 8)
        for block in blocks:
            x = block(x)
        x.sum().backward()
    assert boundaries.host_bytes == 4 * 4 * 8 * 4


@pytest.mark.parametrize("late", [False, True])
def test_a_backward_pass_broken_off_spoils_nothing(monkeypatch, late):
    if late:
        monkeypatch.setattr("longcat_tune.memory.boundaries.Lane", LateLane)
    plain, _ = offloaded()
    through(plain).backward()
    blocks, boundaries = offloaded()

    def fail(_grad):
        raise KeyboardInterrupt

    for _ in range(3):
        loss = through(blocks)
        handle = blocks[1].weight.register_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
        handle.remove()
        del loss
        gc.collect()
        blocks.zero_grad()
        through(blocks).backward()
        for mine, theirs in zip(blocks.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine.grad, theirs.grad)
    # One more than a step needs: torch lets go of the broken graph's end in the next backward pass only.
    assert boundaries.host_bytes <= 5 * 4 * 8 * 4


def test_at_most_two_inputs_are_on_the_device_while_backward_goes():
    blocks, boundaries = offloaded(6)
    most = 0
    for block in blocks:

        def count(_grad):
            nonlocal most
            most = max(most, len(boundaries._coming))

        block.weight.register_hook(count)
    through(blocks).backward()
    assert most == 1
    assert not boundaries._coming
