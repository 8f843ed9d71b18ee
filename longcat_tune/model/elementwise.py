"""What a block computes between matrix products: norms, modulation, gates, rotations, the gate of SwiGLU.

All in float32 whatever the tensors' dtype, as in the official model. Each is a short formula of torch, and
`LEAN` computes it piece by piece: of a clip's 37,440 tokens only some have float32 copies at a time, and
backward keeps nothing but the inputs. `compiled` lets torch.compile make one kernel of each formula instead.
Letters: B batch, T latent frames, S tokens per frame, N = T S tokens, A heads, C channels, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat_tune.model.rope import RotaryTable, rotate

NORM_EPS = 1e-6
PIECE_VALUES = 1 << 25
"""Values in a piece: 128 MB of float32, some thousand tokens."""

Formula = Callable[..., Tensor]


def modulate_formula(x_BTSC: Tensor, shift_BT1C: Tensor, scale_BT1C: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift; LayerNorm without weights."""
    normed: Tensor = F.layer_norm(x_BTSC.float(), (x_BTSC.shape[-1],), eps=NORM_EPS)
    return (normed * (1 + scale_BT1C) + shift_BT1C).to(x_BTSC.dtype)


def modulate_ordered_formula(x_BNC: Tensor, frame_N: Tensor, shift_BTC: Tensor, scale_BTC: Tensor) -> Tensor:
    """As `modulate_formula`, of tokens whose frames are given."""
    return modulate_formula(x_BNC, shift_BTC[:, frame_N], scale_BTC[:, frame_N])


def layer_norm_formula(x: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    """LayerNorm with weights."""
    normed: Tensor = F.layer_norm(x.float(), weight_C.shape, weight_C.float(), bias_C.float(), NORM_EPS)
    return normed.to(x.dtype)


def rms_norm_formula(x: Tensor, weight_d: Tensor) -> Tensor:
    """Root-mean-square norm of the last axis; rounded to x's dtype before the weight, as officially."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + NORM_EPS)
    return normed.to(x.dtype) * weight_d


def norm_rotate_formula(x_BANd: Tensor, cos_Nd: Tensor, sin_Nd: Tensor, weight_d: Tensor) -> Tensor:
    """Normalised and turned: queries or keys."""
    return rotate(rms_norm_formula(x_BANd, weight_d), RotaryTable(cos_Nd, sin_Nd))


def swiglu_formula(gate: Tensor, value: Tensor) -> Tensor:
    """SiLU(gate) * value, in their own dtype."""
    return F.silu(gate) * value


def add_gated_formula(x_BTSC: Tensor, gate_BT1C: Tensor, update_BTSC: Tensor) -> Tensor:
    """Residual x + gate * update."""
    # Mixed dtypes are cast on the fly; the float32 sum takes the product's memory.
    return (gate_BT1C * update_BTSC).add_(x_BTSC).to(x_BTSC.dtype)


Cuts = tuple[int | None, ...]
"""Per tensor of a formula the axis along which it is cut to pieces; None: every piece takes all of it."""


class Elementwise:
    """The formulas as a model calls them.

    Args:
        prepare: gives a formula as it is to be computed; the cuts say how it falls to pieces, None that it
            is best left whole.
    """

    def __init__(self, prepare: Callable[[Formula, Cuts | None], Formula]) -> None:
        self._modulate = prepare(modulate_formula, (1, 1, 1))
        self._modulate_ordered = prepare(modulate_ordered_formula, (1, 0, None, None))
        self._layer_norm = prepare(layer_norm_formula, (-2, None, None))
        self._rms_norm = prepare(rms_norm_formula, (-2, None))
        self._norm_rotate = prepare(norm_rotate_formula, (-2, 0, 0, None))
        self._swiglu = prepare(swiglu_formula, (-2, -2))
        # Backward needs nothing of x and update, which pieces would keep.
        self._add_gated = prepare(add_gated_formula, None)

    def modulate(
        self, x_BNC: Tensor, shift_BTC: Tensor, scale_BTC: Tensor, frame_N: Tensor | None = None
    ) -> Tensor:
        """LayerNorm without weights, then scale and shift per latent frame: LN(x) (1 + scale) + shift.

        Args:
            x_BNC: tokens.
            shift_BTC: float32.
            scale_BTC: float32.
            frame_N: the frame of every token; None: they lie frame by frame.

        Returns:
            Same shape and dtype as x.
        """
        if frame_N is not None:
            return self._modulate_ordered(x_BNC, frame_N, shift_BTC, scale_BTC)
        x_BTSC = x_BNC.unflatten(1, (shift_BTC.shape[1], -1))
        return self._modulate(x_BTSC, shift_BTC[:, :, None], scale_BTC[:, :, None]).flatten(1, 2)

    def add_gated(
        self, x_BNC: Tensor, gate_BTC: Tensor, update_BNC: Tensor, frame_N: Tensor | None = None
    ) -> Tensor:
        """Residual x + gate * update with one float32 gate per latent frame; frame_N as in modulate.

        Returns:
            Same shape and dtype as x.
        """
        if frame_N is not None:
            return self._add_gated(x_BNC, gate_BTC[:, frame_N], update_BNC)
        by_frame = (gate_BTC.shape[1], -1)
        return self._add_gated(
            x_BNC.unflatten(1, by_frame), gate_BTC[:, :, None], update_BNC.unflatten(1, by_frame)
        ).flatten(1, 2)

    def layer_norm(self, x_BNC: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
        """LayerNorm with weights; same shape and dtype as x."""
        return self._layer_norm(x_BNC, weight_C, bias_C)

    def rms_norm(self, x_BANd: Tensor, weight_d: Tensor) -> Tensor:
        """Root-mean-square norm over the head width; dtype as torch promotes x's and the weight's."""
        return self._rms_norm(x_BANd, weight_d)

    def norm_rotate(self, x_BANd: Tensor, weight_d: Tensor, table: RotaryTable) -> Tensor:
        """RMS norm over the head width, then the rotation by the table's angles; queries or keys."""
        return self._norm_rotate(x_BANd, table.cos_Nd, table.sin_Nd, weight_d)

    def swiglu(self, gate_BNI: Tensor, value_BNI: Tensor) -> Tensor:
        """SiLU(gate) * value."""
        return self._swiglu(gate_BNI, value_BNI)


def _lean(formula: Formula, cuts: Cuts | None) -> Formula:
    return formula if cuts is None else partial(_Lean.apply, formula, cuts)


class _Lean(torch.autograd.Function):
    """A formula piece by piece, of which only the inputs are kept; backward computes it once more."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, cuts: Cuts, *tensors: Tensor) -> Tensor:
        ctx.formula, ctx.cuts = formula, cuts
        ctx.save_for_backward(*tensors)
        pieces = _pieces(cuts, tensors)
        first = formula(*_take(next(pieces), cuts, tensors))
        if first.shape == tensors[0].shape:
            return first
        out = torch.empty_like(tensors[0], dtype=first.dtype)
        axis = cuts[0]
        assert axis is not None
        out.narrow(axis, 0, first.shape[axis]).copy_(first)
        del first
        for start, length in pieces:
            out.narrow(axis, start, length).copy_(formula(*_take((start, length), cuts, tensors)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        grads: dict[int, Tensor] = {}
        axis = ctx.cuts[0]
        for piece in _pieces(ctx.cuts, tensors):
            inputs = [part.detach() for part in _take(piece, ctx.cuts, tensors)]
            asked = [inputs[number].requires_grad_() for number in wanted]
            with torch.enable_grad():
                out = ctx.formula(*inputs)
            parts = torch.autograd.grad(out, asked, grad.narrow(axis, *piece))
            for number, part in zip(wanted, parts, strict=True):
                _gather(grads, number, part, tensors[number], ctx.cuts[number], piece)
        return None, None, *(grads.get(number) for number in range(len(tensors)))


def _pieces(cuts: Cuts, tensors: tuple[Tensor, ...]) -> Iterator[tuple[int, int]]:
    """Start and length of every piece, along the axis of the first tensor."""
    assert cuts[0] is not None
    units = tensors[0].shape[cuts[0]]
    length = max(1, PIECE_VALUES * units // tensors[0].numel())
    yield from ((start, min(length, units - start)) for start in range(0, units, length))


def _take(piece: tuple[int, int], cuts: Cuts, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [
        tensor if axis is None else tensor.narrow(axis, *piece)
        for axis, tensor in zip(cuts, tensors, strict=True)
    ]


def _gather(
    grads: dict[int, Tensor], number: int, part: Tensor, of: Tensor, axis: int | None, piece: tuple[int, int]
) -> None:
    """Put a piece's gradient into its place; what every piece used is summed."""
    if part.shape == of.shape and number not in grads:
        grads[number] = part
    elif axis is None:
        grads[number] = grads[number] + part
    else:
        whole = grads.setdefault(number, torch.empty_like(of))
        whole.narrow(axis, *piece).copy_(part)


LEAN = Elementwise(_lean)
"""Piece by piece, with little memory."""


def compiled() -> Elementwise:
    """Every formula as one kernel of torch.compile, built at its first call on a device."""
    return Elementwise(lambda formula, _: torch.compile(formula))
