"""Taking updates apart and together is exact; differences are those of the dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from longcat_tune.checkpoint.lora_update import (
    LoraUpdate,
    folded,
    fuse_rows,
    own_blocks,
    padded,
    relative_difference,
    split_rows,
    without_padding,
)


def update(
    rank: int = 3, *, inputs: int = 5, outputs: int = 12, seed: int = 0, scale: float = 0.7
) -> LoraUpdate:
    generator = Generator().manual_seed(seed)
    return LoraUpdate(
        torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator), scale
    )


def dense(one: LoraUpdate) -> Tensor:
    return one.scale * one.up.double() @ one.down.double()


@given(
    parts=st.sampled_from([2, 3, 6]),
    ranks=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    apart=st.booleans(),
    absent=st.booleans(),
    scales=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_shares_of_the_rows_come_together_exactly(
    parts: int, ranks: list[int], apart: bool, absent: bool, scales: bool
) -> None:
    shares: list[LoraUpdate | None] = [
        update(rank, outputs=4, seed=number if apart else 0, scale=0.5 + number * scales)
        for number, rank in enumerate(ranks[:parts] if apart else ranks[:1] * parts)
    ]
    if absent:
        shares[1] = None
    whole = fuse_rows(shares)
    rows = [torch.zeros(4, 5) if share is None else dense(share) for share in shares]
    torch.testing.assert_close(dense(whole), torch.cat(rows), check_dtype=False, rtol=1e-6, atol=1e-6)
    if not apart and not scales:
        assert whole.rank == ranks[0]
    again = split_rows(whole, parts)
    torch.testing.assert_close(torch.cat([dense(one) for one in again]), dense(whole), rtol=1e-6, atol=1e-6)


def test_blocks_are_only_seen_where_nothing_is_beside_them() -> None:
    blocks = [torch.ones(4, 2), 2 * torch.ones(4, 2), 3 * torch.ones(4, 2)]
    up = torch.block_diag(*blocks)
    found = own_blocks(up, 3)
    assert found is not None
    assert all(torch.equal(one, other) for one, other in zip(found, blocks, strict=True))
    assert own_blocks(up, 2) is None
    assert own_blocks(up[:, :5], 3) is None
    up[0, 5] = 1e-30
    assert own_blocks(up, 3) is None


@pytest.mark.parametrize("rank", [3, 4, 128])
def test_padding_changes_nothing_and_is_undone(rank: int) -> None:
    one = update()
    down, up = padded(one.down, one.up, rank)
    assert (down.shape[0], up.shape[1]) == (rank, rank)
    (down,), (up,) = without_padding([down], [up])
    assert torch.equal(down, one.down)
    assert torch.equal(up, one.up)


def test_only_ranks_that_are_zero_on_both_sides_everywhere_are_padding() -> None:
    fresh = update()
    downs, ups = without_padding([fresh.down], [torch.zeros(12, 3)])
    assert downs[0].shape == (3, 5)
    zeros = torch.zeros(3, 5)
    downs, ups = without_padding([zeros, fresh.down], [torch.zeros(12, 3), fresh.up])
    assert (downs[0].shape, ups[1].shape) == ((3, 5), (12, 3))
    downs, ups = without_padding([zeros], [torch.zeros(12, 3)])
    assert (downs[0].shape, ups[0].shape) == ((1, 5), (12, 1))


@pytest.mark.parametrize("error", [0.0, 1e-7, 1e-5, 1e-2, 3.0])
def test_differences_of_other_factors_are_those_of_the_dense_matrices(error: float) -> None:
    one, noise = update(), update(seed=1)
    # The same product of other factors: A and B turned against each other.
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=Generator().manual_seed(2)))
    other = LoraUpdate(
        torch.cat([turn.mT @ one.down.double(), noise.down.double()]),
        torch.cat([one.up.double() @ turn, error * noise.up.double()], dim=1),
        one.scale,
    )
    expected = ((dense(other) - dense(one)).norm() / dense(one).norm()).item()
    assert relative_difference(one, other) == pytest.approx(expected, rel=1e-3, abs=2e-8)
    assert one.norm() == pytest.approx(dense(one).norm().item(), rel=1e-6)


def test_a_difference_of_scale_magnitude_or_size_is_seen() -> None:
    one = update()
    assert relative_difference(one, update()) == 0
    assert relative_difference(one, update(scale=0.7 * 1.25)) == pytest.approx(0.25)
    assert relative_difference(one, update(inputs=6)) == float("inf")
    long = LoraUpdate(one.down, one.up, one.scale, torch.ones(12))
    assert relative_difference(long, one) == float("inf")
    longer = LoraUpdate(one.down, one.up, one.scale, 1.5 * torch.ones(12))
    assert relative_difference(long, longer) == pytest.approx(0.5)
    broken = LoraUpdate(one.down, one.up * float("nan"), one.scale)
    assert not relative_difference(broken, broken) <= 1


def test_a_folded_scale_is_in_the_matrix() -> None:
    one = folded(update())
    assert one.scale == 1
    torch.testing.assert_close(dense(one), dense(update()), rtol=1e-6, atol=1e-6)
    half = folded(LoraUpdate(update().down.bfloat16(), update().up.bfloat16(), 0.7))
    assert half.up.dtype == torch.float32
