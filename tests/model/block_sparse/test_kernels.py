"""The kernels, on a GPU or interpreted, against the definition: any grid, any lists, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longcat_tune.model.block_sparse.function import attend_by_kernel
from longcat_tune.model.block_sparse.lists import BlockLists
from longcat_tune.model.block_sparse.partition import Grid, Partition
from longcat_tune.model.block_sparse.reference import masked_attention
from tests.model.block_sparse import blocks
from tests.model.block_sparse.blocks import DEVICE, random_heads, relative_error

pytest.importorskip("triton")

# Rows of other blocks are computed, and not stored; numpy tells when they overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def cut(grid: Grid, chunk: Grid) -> Partition:
    return blocks.cut(grid, chunk, DEVICE)


NAMES = ("out", "dq", "dk", "dv")


def random_mask(queries: Partition, keys: Partition, *, batch: int, heads: int, seed: int) -> Tensor:
    """Rows of every length, the first of them empty."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, queries.num_blocks, keys.num_blocks)
    mask = torch.rand(shape, generator=generator) < torch.rand((*shape[:3], 1), generator=generator)
    mask[0, 0, 0] = False
    return mask.to(DEVICE)


def by_kernels(heads: list[Tensor], mask: Tensor, queries: Partition, keys: Partition) -> list[Tensor]:
    *qkv, dout = heads
    qkv = [tensor.detach().requires_grad_() for tensor in qkv]
    out = attend_by_kernel(*qkv, BlockLists.of_mask(mask, keys), queries, keys)
    return [out.detach(), *torch.autograd.grad(out, qkv, dout)]


def by_definition(heads: list[Tensor], mask: Tensor, queries: Partition, keys: Partition) -> list[Tensor]:
    *qkv, dout = (tensor.double() for tensor in heads)
    qkv = [tensor.detach().requires_grad_() for tensor in qkv]
    out = masked_attention(*qkv, mask, queries, keys)[0]
    return [out.detach(), *torch.autograd.grad(out, qkv, dout)]


def check(
    heads: list[Tensor], mask: Tensor, queries: Partition, keys: Partition, *, out: float, grads: float
) -> None:
    got, right = by_kernels(heads, mask, queries, keys), by_definition(heads, mask, queries, keys)
    for name, mine, expected in zip(NAMES, got, right, strict=True):
        error = relative_error(mine, expected)
        assert error <= (out if name == "out" else grads), f"{name} {error:.1e}"


grids = st.tuples(st.integers(1, 4), st.integers(3, 5), st.integers(6, 8))
chunks = st.sampled_from([(4, 4, 4), (2, 4, 4), (3, 3, 3), (2, 3, 8), (5, 5, 5)])


@settings(max_examples=8, deadline=None)
@given(
    grid_q=grids,
    grid_k=grids,
    chunk_q=chunks,
    chunk_k=chunks,
    head_dim=st.sampled_from([16, 24, 32]),
    seed=st.integers(0, 99),
)
def test_any_grid_gives_what_the_definition_gives(
    grid_q: Grid, grid_k: Grid, chunk_q: Grid, chunk_k: Grid, head_dim: int, seed: int
) -> None:
    queries, keys = cut(grid_q, chunk_q), cut(grid_k, chunk_k)
    heads = random_heads(queries, keys, head_dim=head_dim, seed=seed)
    mask = random_mask(queries, keys, batch=1, heads=1, seed=seed)
    check(heads, mask, queries, keys, out=5e-6, grads=1e-5)


def test_batches_and_heads_keep_apart_in_any_memory_layout() -> None:
    queries = cut((3, 4, 5), (2, 4, 4))
    heads = random_heads(queries, queries, batch=2, heads=3)
    mask = random_mask(queries, queries, batch=2, heads=3, seed=3)
    as_projected = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in heads]
    right = by_definition(heads, mask, queries, queries)
    for name, mine, expected in zip(
        NAMES, by_kernels(as_projected, mask, queries, queries), right, strict=True
    ):
        assert relative_error(mine, expected) < 1e-5, name
    values_last = [*heads[:3], heads[3].transpose(2, 3).contiguous().transpose(2, 3)]
    for name, mine, expected in zip(
        NAMES, by_kernels(values_last, mask, queries, queries), right, strict=True
    ):
        assert relative_error(mine, expected) < 1e-5, name


def test_output_lies_ready_to_be_projected() -> None:
    queries = cut((2, 4, 4), (2, 4, 4))
    out = by_kernels(
        random_heads(queries, queries, heads=2),
        torch.ones(1, 2, 1, 1, device=DEVICE).bool(),
        queries,
        queries,
    )[0]
    assert out.transpose(1, 2).is_contiguous()


def test_empty_rows_give_zeros_and_take_no_gradient() -> None:
    queries, keys = cut((4, 4, 4), (4, 4, 2)), cut((4, 4, 8), (4, 4, 4))
    mask = torch.tensor([[True, False], [False, False]], device=DEVICE)[None, None]
    out, dq, dk, dv = by_kernels(random_heads(queries, keys), mask, queries, keys)
    assert not out[:, :, 32:].any()
    assert not dq[:, :, 32:].any()
    assert not dk[:, :, 64:].any()
    assert not dv[:, :, 64:].any()
    assert all(tensor.isfinite().all() and tensor.any() for tensor in (out, dq, dk, dv))


def test_no_block_at_all_gives_zeros() -> None:
    queries = cut((2, 4, 4), (2, 2, 4))
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool, device=DEVICE)
    assert not any(
        tensor.any() for tensor in by_kernels(random_heads(queries, queries), mask, queries, queries)
    )


@pytest.mark.parametrize(
    ("dtype", "out", "grads"),
    [(torch.float32, 5e-6, 1e-5), (torch.float16, 8e-4, 2.5e-3), (torch.bfloat16, 8e-3, 3e-2)],
)
def test_large_logits_stay_exact(dtype: torch.dtype, out: float, grads: float) -> None:
    # Bounds: the golden manifest's, the interpreter's own for bfloat16.
    queries = cut((4, 5, 6), (4, 4, 4))
    generator = torch.Generator().manual_seed(5)
    q, k, v, dout = torch.randn(4, 1, 1, queries.num_tokens, 64, generator=generator).to(DEVICE)
    heads = [tensor.to(torch.bfloat16).to(dtype) for tensor in (3 * q, 3 * k, v, dout)]
    mask = random_mask(queries, queries, batch=1, heads=1, seed=5)
    check(heads, mask, queries, queries, out=out, grads=grads)


def test_scores_far_below_zero_beside_an_edge_stay_finite() -> None:
    queries = cut((2, 3, 5), (2, 4, 4))
    q, k, v, dout = random_heads(queries, queries)
    q, k = q.abs() + 10, -k.abs() - 10
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool, device=DEVICE)
    check([q, k, v, dout], mask, queries, queries, out=1e-5, grads=1e-4)


def test_two_runs_are_equal_to_the_bit() -> None:
    queries = cut((3, 4, 5), (2, 4, 4))
    heads = random_heads(queries, queries, heads=2)
    mask = random_mask(queries, queries, batch=1, heads=2, seed=7)
    first, second = (by_kernels(heads, mask, queries, queries) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_heads_turned_around_in_groups_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from longcat_tune.model.block_sparse import lists

    queries = cut((3, 4, 5), (2, 4, 4))
    heads = random_heads(queries, queries, heads=3)
    mask = random_mask(queries, queries, batch=1, heads=3, seed=9)
    together = by_kernels(heads, mask, queries, queries)
    monkeypatch.setattr(lists, "ENTRIES_AT_ONCE", 1)
    apart = by_kernels(heads, mask, queries, queries)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


def test_axes_of_one_element_do_not_spoil_the_alignment() -> None:
    from longcat_tune.model.block_sparse.launches import _strides

    odd = torch.empty(64).as_strided((1, 1, 4, 16), (1, 3, 16, 1))
    assert _strides(odd, odd.transpose(1, 2)) == [0, 0, 16, 0, 16, 0]
