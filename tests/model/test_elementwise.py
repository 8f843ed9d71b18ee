"""Norms, modulation, gates and rotations piece by piece: the plain formulas' numbers from little memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from longcat_tune.model import elementwise
from longcat_tune.model.elementwise import LEAN, Elementwise
from longcat_tune.model.rope import RotaryTable, rotary_table
from tests.model.saved_bytes import PlainElementwise, saved_bytes

PLAIN = PlainElementwise()
# Torch's vectors divide the channels: the tail of a piece would be computed by another exp.
FRAMES, ROWS, COLUMNS, CHANNELS = 3, 4, 5, 64
TOKENS = FRAMES * ROWS * COLUMNS

Call = Callable[[Elementwise, list[Tensor]], Tensor]


@cache
def table() -> RotaryTable:
    return rotary_table((FRAMES, ROWS, COLUMNS), 8)


@cache
def shuffled_frames() -> Tensor:
    places = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    return places // (ROWS * COLUMNS)


X, PER_FRAME = (2, TOKENS, CHANNELS), (2, FRAMES, CHANNELS)
CASES: dict[str, tuple[Call, list[tuple[int, ...]]]] = {
    "modulate": (lambda e, t: e.modulate(*t), [X, PER_FRAME, PER_FRAME]),
    "modulate_ordered": (lambda e, t: e.modulate(*t, shuffled_frames()), [X, PER_FRAME, PER_FRAME]),
    "add_gated": (lambda e, t: e.add_gated(*t), [X, PER_FRAME, X]),
    "add_gated_ordered": (lambda e, t: e.add_gated(*t, shuffled_frames()), [X, PER_FRAME, X]),
    "layer_norm": (lambda e, t: e.layer_norm(*t), [X, (CHANNELS,), (CHANNELS,)]),
    "rms_norm": (lambda e, t: e.rms_norm(*t), [(2, 3, TOKENS, 64), (64,)]),
    "norm_rotate": (lambda e, t: e.norm_rotate(*t, table()), [(2, 3, TOKENS, 8), (8,)]),
    "swiglu": (lambda e, t: e.swiglu(*t), [X, X]),
}


def tensors_of(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Tokens in the dtype, per-frame values in float32, as the modulation gives them."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(torch.float32 if shape == PER_FRAME else dtype)
        for shape in CASES[name][1]
    ]


def result_and_gradients(name: str, how: Elementwise, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    tensors = [tensor.requires_grad_() for tensor in tensors_of(name, dtype)]
    out = CASES[name][0](how, tensors)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (out * weights).sum().backward()
    return out.detach(), [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("piece", [1 << 25, 900, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_pieces_give_the_formulas_numbers(name, dtype, piece, monkeypatch) -> None:
    monkeypatch.setattr(elementwise, "PIECE_VALUES", piece)
    expected, grads = result_and_gradients(name, PLAIN, dtype)
    got, lean_grads = result_and_gradients(name, LEAN, dtype)
    assert got.dtype == expected.dtype == dtype
    assert torch.equal(got, expected)
    tokens = [number for number, shape in enumerate(CASES[name][1]) if len(shape) > 2 and shape != PER_FRAME]
    for number, (one, other) in enumerate(zip(lean_grads, grads, strict=True)):
        if number in tokens:
            assert torch.equal(one, other)
        else:
            # What every piece used gets the sum of the pieces' gradients, in another order.
            close = {"atol": 0.3, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 2e-5, "rtol": 1e-5}
            torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("name", [name for name in CASES if "gated" not in name])
def test_backward_keeps_nothing_but_the_inputs(name: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in tensors_of(name, torch.bfloat16)]
    held = [*tensors, table().cos_Nd, table().sin_Nd, shuffled_frames()]
    assert saved_bytes(lambda: CASES[name][0](LEAN, tensors), held) == 0
    # The plain formula keeps at least the tokens, once more.
    assert saved_bytes(lambda: CASES[name][0](PLAIN, tensors), held) >= tensors[0].nbytes


def test_a_gated_sum_keeps_neither_of_its_summands() -> None:
    x_BNC, gate_BTC, update_BNC = tensors_of("add_gated", torch.bfloat16)
    x_BNC.requires_grad_()
    update_BNC.requires_grad_()
    kept = saved_bytes(lambda: LEAN.add_gated(x_BNC * 1, gate_BTC, update_BNC * 1), [gate_BTC])
    assert kept == 0
