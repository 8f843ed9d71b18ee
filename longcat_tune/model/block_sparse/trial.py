"""Whether the kernels work here: compiled, launched, and compared with the definition before a run.

Letters: A heads, N tokens, d head width.
"""

from __future__ import annotations

import math
import subprocess
from importlib.util import find_spec

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.function import attend_in_blocks
from longcat_tune.model.block_sparse.partition import Partition, partition
from longcat_tune.model.block_sparse.reference import masked_attention
from longcat_tune.model.block_sparse.selection import SelectionRule, select_mask
from longcat_tune.model.block_sparse.settings import BlockSparseSettings

NUM_HEADS = 2
RULE = SelectionRule(0.5)
"""Several blocks in every row, of the few that a small clip has."""

TOLERANCE = 0.02
"""Relative error (Frobenius); bf16 rounding gives 0.005."""


def kernel_fault(
    settings: BlockSparseSettings, *, device: torch.device, dtype: torch.dtype, head_dim: int, training: bool
) -> str | None:
    """Try the kernels on small clips, with and without partial blocks.

    Args:
        settings: the checkpoint's, whose chunk decides what is compiled.
        device: a CUDA device; another runs the definition, which has no fault.
        dtype: what attention is computed in.
        head_dim: the model's.
        training: whether gradients are needed.

    Returns:
        Why they cannot be used, in one line; None: they work.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton is not installed"
    frames, rows, columns = settings.chunk
    grids = [(2 * frames, 2 * rows, 2 * columns), (2 * frames + 1, 2 * rows + 1, 2 * columns + 1)]
    cuts = [partition((grid,), settings.chunk, device) for grid in grids]
    generator = torch.Generator().manual_seed(0)
    try:
        # The first to need the kernels may be a render, inside a forward pass.
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            worst = max(
                _worst_error(
                    _sample(cut, head_dim, generator).to(device, dtype).requires_grad_(training), cut
                )
                for cut in cuts
            )
    except torch.OutOfMemoryError:
        # Says nothing of the kernels, and must not make the whole run dense.
        raise
    except _faults(device) as error:
        return (str(error) or type(error).__name__).strip().splitlines()[0]
    return None if worst <= TOLERANCE else f"its result is off by {worst:.1%}"


def _faults(device: torch.device) -> tuple[type[Exception], ...]:
    """What compiling and launching raise; those that are not Triton's, for a missing C compiler or driver."""
    faults: tuple[type[Exception], ...] = (RuntimeError, OSError, ValueError, subprocess.SubprocessError)
    # And what a Triton of another version answers to names and arguments that it does not know.
    faults = (*faults, AttributeError, ImportError, TypeError, AssertionError)
    if device.type != "cuda":
        return faults
    from triton.errors import TritonError

    return (*faults, TritonError)


def _worst_error(qkv_1N3Ad: Tensor, cut: Partition) -> float:
    """The greatest relative error of the output and, if the sample asks for one, of the gradient."""
    q, k, v = _heads(qkv_1N3Ad)
    mask = select_mask(q, k, cut, cut, RULE)
    got = _with_gradient(attend_in_blocks(q, k, v, cut, cut, RULE), qkv_1N3Ad)
    exact = qkv_1N3Ad.detach().float().requires_grad_(qkv_1N3Ad.requires_grad)
    q, k, v = _heads(exact)
    right = _with_gradient(masked_attention(q, k, v, mask, cut, cut)[0], exact)
    errors = [
        ((mine.float() - other).norm() / other.norm()).item() for mine, other in zip(got, right, strict=True)
    ]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _sample(cut: Partition, head_dim: int, generator: torch.Generator) -> Tensor:
    """Queries, keys and values [1, N, 3, A, d], in the memory layout that a projection gives them."""
    return torch.randn(1, cut.num_tokens, 3, NUM_HEADS, head_dim, generator=generator)


def _heads(qkv_1N3Ad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_1ANd, k_1ANd, v_1ANd = qkv_1N3Ad.permute(2, 0, 3, 1, 4)
    return q_1ANd, k_1ANd, v_1ANd


def _with_gradient(out: Tensor, of: Tensor) -> list[Tensor]:
    """The output, and the gradient of its sum of squares if one is asked for."""
    if not of.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [of])]
