"""What a block computes between matrix products: norms, modulation, gates, rotations, the gate of SwiGLU.

All in float32 whatever the tensors' dtype, as in the official model. Each is a short formula of torch.
Backward keeps nothing but a formula's inputs and computes it once more; who computes is a `Runner`: `LEAN`
goes piece by piece, so that of a clip's 37,440 tokens only some have float32 copies at a time.
Letters: B batch, T latent frames, S tokens per frame, N = T S tokens, A heads, C channels, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat_tune.model.rope import RotaryTable, rotate

NORM_EPS = 1e-6
PIECE_VALUES = 1 << 25
"""Values in a piece: 128 MB of float32, some thousand tokens."""

Formula = Callable[..., Tensor]
"""Of some tensors; the result has the shape of the first."""

Cuts = tuple[int | None, ...]
"""Per tensor of a formula the axis along which it is cut to pieces; None: every piece takes all of it."""


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


def gated_sum_formula(x_BTSC: Tensor, gate_BT1C: Tensor, update_BTSC: Tensor) -> Tensor:
    """Residual x + gate * update."""
    # Mixed dtypes are cast on the fly; the float32 sum takes the product's memory.
    return (gate_BT1C * update_BTSC).add_(x_BTSC).to(x_BTSC.dtype)


def gated_sum_ordered_formula(x_BNC: Tensor, gate_BTC: Tensor, update_BNC: Tensor, frame_N: Tensor) -> Tensor:
    """As `gated_sum_formula`, of tokens whose frames are given."""
    return gated_sum_formula(x_BNC, gate_BTC[:, frame_N], update_BNC)


def gated_formula(grad_BTSC: Tensor, gate_BT1C: Tensor) -> Tensor:
    """The gradient of the update in a gated sum."""
    return (grad_BTSC * gate_BT1C).to(grad_BTSC.dtype)


def gated_ordered_formula(grad_BNC: Tensor, gate_BTC: Tensor, frame_N: Tensor) -> Tensor:
    """As `gated_formula`, of tokens whose frames are given."""
    return gated_formula(grad_BNC, gate_BTC[:, frame_N])


class Runner(Protocol):
    """Computes formulas of detached tensors, and their gradients."""

    def value(self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor]) -> Tensor:
        """The formula of the tensors."""
        ...

    def gradients(
        self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor], wanted: tuple[int, ...], grad: Tensor
    ) -> Sequence[Tensor]:
        """The gradients of those tensors whose numbers are wanted, given that of the result."""
        ...


class Elementwise:
    """The formulas as a model calls them.

    Args:
        runner: computes them.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

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
            return self._recomputed(
                modulate_ordered_formula, (1, 0, None, None), x_BNC, frame_N, shift_BTC, scale_BTC
            )
        x_BTSC = x_BNC.unflatten(1, (shift_BTC.shape[1], -1))
        by_frame = (x_BTSC, shift_BTC[:, :, None], scale_BTC[:, :, None])
        return self._recomputed(modulate_formula, (1, 1, 1), *by_frame).flatten(1, 2)

    def add_gated(
        self, x_BNC: Tensor, gate_BTC: Tensor, update_BNC: Tensor, frame_N: Tensor | None = None
    ) -> Tensor:
        """Residual x + gate * update with one float32 gate per latent frame; frame_N as in modulate.

        Returns:
            Same shape and dtype as x.
        """
        out_BNC: Tensor = _GatedSum.apply(  # type: ignore[no-untyped-call]
            self._runner, x_BNC, gate_BTC, update_BNC, frame_N
        )
        return out_BNC

    def layer_norm(self, x_BNC: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
        """LayerNorm with weights; same shape and dtype as x."""
        return self._recomputed(layer_norm_formula, (-2, None, None), x_BNC, weight_C, bias_C)

    def rms_norm(self, x_BANd: Tensor, weight_d: Tensor) -> Tensor:
        """Root-mean-square norm over the head width; dtype as torch promotes x's and the weight's."""
        return self._recomputed(rms_norm_formula, (-2, None), x_BANd, weight_d)

    def norm_rotate(self, x_BANd: Tensor, weight_d: Tensor, table: RotaryTable) -> Tensor:
        """RMS norm over the head width, then the rotation by the table's angles; queries or keys."""
        tensors = (x_BANd, table.cos_Nd, table.sin_Nd, weight_d)
        return self._recomputed(norm_rotate_formula, (-2, 0, 0, None), *tensors)

    def swiglu(self, gate_BNI: Tensor, value_BNI: Tensor) -> Tensor:
        """SiLU(gate) * value."""
        return self._recomputed(swiglu_formula, (-2, -2), gate_BNI, value_BNI)

    def _recomputed(self, formula: Formula, cuts: Cuts, *tensors: Tensor) -> Tensor:
        out: Tensor = _Recomputed.apply(self._runner, formula, cuts, *tensors)  # type: ignore[no-untyped-call]
        return out


class _Recomputed(torch.autograd.Function):
    """A formula of which only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, runner: Runner, formula: Formula, cuts: Cuts, *tensors: Tensor) -> Tensor:
        ctx.runner, ctx.formula, ctx.cuts = runner, formula, cuts
        ctx.save_for_backward(*tensors)
        return runner.value(formula, cuts, [tensor.detach() for tensor in tensors])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [tensor.detach() for tensor in ctx.saved_tensors]
        wanted = tuple(number for number, needed in enumerate(ctx.needs_input_grad[3:]) if needed)
        found = ctx.runner.gradients(ctx.formula, ctx.cuts, tensors, wanted, grad)
        grads = dict(zip(wanted, found, strict=True))
        return None, None, None, *(grads.get(number) for number in range(len(tensors)))


class _GatedSum(torch.autograd.Function):
    """A gated sum, whose backward needs neither summand unless the gate is trained."""

    @staticmethod
    def forward(
        ctx: Any, runner: Runner, x_BNC: Tensor, gate_BTC: Tensor, update_BNC: Tensor, frame_N: Tensor | None
    ) -> Tensor:
        ctx.runner = runner
        ctx.save_for_backward(gate_BTC, frame_N, update_BNC if ctx.needs_input_grad[2] else None)
        x_BNC, gate_BTC, update_BNC = x_BNC.detach(), gate_BTC.detach(), update_BNC.detach()
        if frame_N is not None:
            ordered = (x_BNC, gate_BTC, update_BNC, frame_N)
            return runner.value(gated_sum_ordered_formula, (1, None, 1, 0), ordered)
        frames = (gate_BTC.shape[1], -1)
        by_frame = (x_BNC.unflatten(1, frames), gate_BTC[:, :, None], update_BNC.unflatten(1, frames))
        return runner.value(gated_sum_formula, (1, 1, 1), by_frame).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNC: Tensor) -> tuple[Tensor | None, ...]:
        gate_BTC, frame_N, update_BNC = ctx.saved_tensors
        gate_grad = update_grad = None
        if ctx.needs_input_grad[3]:
            update_grad = _gated(ctx.runner, grad_BNC, gate_BTC.detach(), frame_N)
        if update_BNC is not None:
            gate_grad = _gate_gradient(grad_BNC, update_BNC, frame_N, frames=gate_BTC.shape[1])
        return None, grad_BNC, gate_grad, update_grad, None


def _gate_gradient(grad_BNC: Tensor, update_BNC: Tensor, frame_N: Tensor | None, *, frames: int) -> Tensor:
    """Sums over the tokens of every frame, float32 [B, T, C]; frame by frame, always in the same order."""
    if frame_N is None:
        pairs = zip(
            grad_BNC.unflatten(1, (frames, -1)).unbind(1),
            update_BNC.unflatten(1, (frames, -1)).unbind(1),
            strict=True,
        )
        return torch.stack([(grad_BSC.float() * update_BSC).sum(1) for grad_BSC, update_BSC in pairs], 1)
    sums_BC = []
    for tokens_S in frame_N.argsort(stable=True).unflatten(0, (frames, -1)):
        grad_BSC, update_BSC = grad_BNC.index_select(1, tokens_S), update_BNC.index_select(1, tokens_S)
        sums_BC.append((grad_BSC.float() * update_BSC).sum(1))
    return torch.stack(sums_BC, 1)


def _gated(runner: Runner, grad_BNC: Tensor, gate_BTC: Tensor, frame_N: Tensor | None) -> Tensor:
    if frame_N is not None:
        return runner.value(gated_ordered_formula, (1, None, 0), (grad_BNC, gate_BTC, frame_N))
    grad_BTSC = grad_BNC.unflatten(1, (gate_BTC.shape[1], -1))
    return runner.value(gated_formula, (1, 1), (grad_BTSC, gate_BTC[:, :, None])).flatten(1, 2)


class Pieces:
    """Computes formulas piece by piece."""

    def value(self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor]) -> Tensor:
        """As `Runner.value`."""
        pieces = _pieces(cuts, tensors)
        first = formula(*_take(next(pieces), cuts, tensors))
        if first.shape == tensors[0].shape:
            return first
        axis = cuts[0]
        assert axis is not None
        out = torch.empty_like(tensors[0], dtype=first.dtype)
        out.narrow(axis, 0, first.shape[axis]).copy_(first)
        del first
        for piece in pieces:
            out.narrow(axis, *piece).copy_(formula(*_take(piece, cuts, tensors)))
        return out

    def gradients(
        self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor], wanted: tuple[int, ...], grad: Tensor
    ) -> Sequence[Tensor]:
        """As `Runner.gradients`."""
        grads: dict[int, Tensor] = {}
        axis = cuts[0]
        assert axis is not None
        for piece in _pieces(cuts, tensors):
            inputs = [part.detach() for part in _take(piece, cuts, tensors)]
            asked = [inputs[number].requires_grad_() for number in wanted]
            with torch.enable_grad():
                out = formula(*inputs)
            parts = torch.autograd.grad(out, asked, grad.narrow(axis, *piece))
            for number, part in zip(wanted, parts, strict=True):
                _gather(grads, number, part, tensors[number], cuts[number], piece)
        return [grads[number] for number in wanted]


def _pieces(cuts: Cuts, tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Start and length of every piece, along the axis of the first tensor."""
    assert cuts[0] is not None
    units = tensors[0].shape[cuts[0]]
    length = max(1, PIECE_VALUES * units // tensors[0].numel())
    yield from ((start, min(length, units - start)) for start in range(0, units, length))


def _take(piece: tuple[int, int], cuts: Cuts, tensors: Sequence[Tensor]) -> list[Tensor]:
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
        if number not in grads:
            grads[number] = torch.empty_like(of)
        grads[number].narrow(axis, *piece).copy_(part)


PIECES = Pieces()
LEAN = Elementwise(PIECES)
"""Piece by piece, with little memory, on any device."""
