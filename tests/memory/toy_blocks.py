"""Small blocks with something trained in each, and what a step and a look through them give."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from longcat_tune.memory.frozen import freeze_linears
from longcat_tune.memory.quantized import QuantizedLinear, dense_from_int8
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


def in_int8(linear: nn.Linear) -> QuantizedLinear:
    scale = linear.weight.abs().amax(1, keepdim=True) / 127
    data = (linear.weight / scale).round().to(torch.int8)
    return QuantizedLinear.made_of(linear, {"weight": data, "scale": scale}, dense_from_int8)


def freeze(block: nn.Module, quantize=None) -> None:
    trained = block.trained
    del block.trained
    freeze_linears(block, in_float32=(Float32Island,), quantize=quantize)
    block.trained = trained


def streamed(blocks: nn.ModuleList, which: list[int] | None = None, **options) -> BlockStream:
    stream = BlockStream(device=CPU, **options)
    for block in [blocks[number] for number in which] if which is not None else blocks:
        freeze(block)
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
