"""Inputs of recomputed blocks leave the device, come back equal, and their host memory is used again."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn

from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.recompute import enable_recompute


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
