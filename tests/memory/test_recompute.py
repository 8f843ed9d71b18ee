"""Recomputing changes memory and nothing else: results and gradients stay equal to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.lora_targets import lora_target_modules


class ToyBlock(nn.Module):
    """Counts its calls; takes a keyword and gives two outputs, as a transformer block may."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: Tensor, *, shift: Tensor, note: str = "") -> tuple[Tensor, str]:
        self.calls += 1
        return x + self.dropout(torch.tanh(self.inner(x))) * shift, note


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(ToyBlock(8) for _ in range(5))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        for block in self.blocks:
            x, note = block(x, shift=shift, note="kept")
            assert note == "kept"
        return x

    @property
    def calls(self) -> list[int]:
        return [block.calls for block in self.blocks]


def gradients(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)
    output = model(*args, **kwargs)
    output.square().mean().backward()
    return output.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def toy_inputs() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(1)
    return torch.randn(3, 8, generator=generator, requires_grad=True), torch.randn(3, 8, generator=generator)


def assert_same(first: tuple[Tensor, dict[str, Tensor]], second: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    assert first[1]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize(
    ("interval", "calls"), [(1, [2, 2, 2, 2, 2]), (2, [2, 1, 2, 1, 2]), (9, [2, 1, 1, 1, 1])]
)
def test_every_interval_th_block_is_computed_twice_with_the_same_result(
    interval: int, calls: list[int]
) -> None:
    plain, recomputed = Toy(), Toy()
    enable_recompute(recomputed.blocks, interval=interval)
    assert_same(gradients(plain, *toy_inputs()), gradients(recomputed, *toy_inputs()))
    assert recomputed.calls == calls


def test_without_gradients_nothing_is_recomputed_or_kept() -> None:
    model = Toy()
    enable_recompute(model.blocks)
    with torch.no_grad():
        assert not model(*toy_inputs()).requires_grad
    assert model.calls == [1] * 5


def test_less_is_kept_for_backward() -> None:
    def kept(model: nn.Module) -> int:
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(*toy_inputs())
        return count

    recomputed = Toy()
    enable_recompute(recomputed.blocks)
    assert kept(recomputed) < kept(Toy()) / 2


def test_names_and_copies_of_the_model_stay_usable() -> None:
    model = Toy()
    enable_recompute(model.blocks)
    assert model.state_dict().keys() == Toy().state_dict().keys()
    assert_same(gradients(copy.deepcopy(model), *toy_inputs()), gradients(model, *toy_inputs()))


def transformer(dtype: torch.dtype) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 3, 2, 8, 4, 16, 16).to(dtype)


def adapt(model: LongCatVideoTransformer) -> None:
    names = lora_target_modules(model, "all-linear")
    add_lora(
        model,
        targets=names,
        rank=2,
        alpha=2,
        generator=Generator().manual_seed(3),
        dropout=0.2,
        autocast=True,
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(generator=Generator().manual_seed(len(name)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("order", ["lora first", "recompute first"])
@pytest.mark.parametrize("cond", [0, 1])
def test_the_transformer_with_lora_is_equal_to_the_bit(autocast: bool, order: str, cond: int) -> None:
    dtype = torch.bfloat16 if autocast else torch.float32
    plain, recomputed = transformer(dtype), transformer(dtype)
    adapt(plain)
    if order == "lora first":
        adapt(recomputed)
        enable_recompute(recomputed.blocks)
    else:
        enable_recompute(recomputed.blocks)
        adapt(recomputed)
    generator = Generator().manual_seed(1)
    args = (
        torch.randn(2, 4, 3, 4, 4, generator=generator),
        torch.tensor([900.0, 300.0]),
        torch.randn(2, 6, 8, generator=generator),
        torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(plain, *args, num_cond_latents=cond)
        got = gradients(recomputed, *args, num_cond_latents=cond)
    assert_same(expected, got)
    assert all(".lora_" in name for name in expected[1])
