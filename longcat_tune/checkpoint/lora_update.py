"""The update of one layer as a LoRA holds it, and the exact ways to take it apart and put it together.

Knows matrices only: no names, no files, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoraUpdate:
    """scale * up @ down is added to a layer's weight.

    With a magnitude (DoRA) the sum's rows are then brought to these lengths.

    Attributes:
        down: [rank, in].
        up: [out, rank].
        scale: alpha / rank.
        magnitude: [out], or None.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Inner width."""
        return self.down.shape[0]

    def norm(self) -> float:
        """Frobenius norm of scale * up @ down, without making it."""
        return product_norm(self.scale * self.up.double(), self.down.double())


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of a product of two thin matrices, from their Gram matrices.

    Args:
        up: [out, rank]; float64 for a norm that cancellation has left small.
        down: [rank, in].
    """
    squared = ((up.mT @ up) * (down @ down.mT)).sum().item()
    return cast(float, max(squared, 0.0) ** 0.5)


def relative_difference(first: LoraUpdate, second: LoraUpdate) -> float:
    """How far the second's update is from the first's, over the size of the first's.

    Equal factors are only compared; the products' difference is taken from Gram matrices in float64, which
    cost (in + out) * rank^2 and no memory to speak of.
    """
    if first.down.shape[1] != second.down.shape[1] or first.up.shape[0] != second.up.shape[0]:
        return float("inf")
    # Summed below, not the larger of both: a NaN must come through.
    magnitudes = _relative(first.magnitude, second.magnitude)
    if torch.equal(first.down, second.down) and torch.equal(first.up, second.up):
        if first.scale == second.scale or not first.up.any():
            return magnitudes
        return magnitudes + abs(first.scale - second.scale) / (abs(first.scale) or 1.0)
    up = torch.cat([first.scale * first.up.double(), -second.scale * second.up.double()], dim=1)
    down = torch.cat([first.down.double(), second.down.double()])
    difference, whole = product_norm(up, down), first.norm()
    return magnitudes + (difference / whole if whole else difference)


def _relative(first: Tensor | None, second: Tensor | None) -> float:
    if first is None or second is None:
        return 0.0 if first is second else float("inf")
    whole = first.double().norm().item()
    return cast(float, (first.double() - second.double()).norm().item() / (whole or 1.0))


def own_blocks(up: Tensor, count: int) -> tuple[Tensor, ...] | None:
    """The blocks [out / count, rank / count] on the diagonal of up, if there is nothing beside them.

    None: the rows' shares have no ranks of their own.
    """
    rows, rank = up.shape
    if rows % count or rank % count:
        return None
    blocks_CRCK = up.unflatten(0, (count, -1)).unflatten(-1, (count, -1))
    beside = ~torch.eye(count, dtype=torch.bool, device=up.device)
    if blocks_CRCK.transpose(1, 2)[beside].any():
        return None
    return tuple(blocks_CRCK[number, :, number] for number in range(count))


def split_rows(update: LoraUpdate, count: int) -> list[LoraUpdate]:
    """Make one update for each of equal shares of the rows.

    Block-diagonal shares keep only their own ranks; others all take the whole down matrix.
    """
    if count == 1:
        return [update]
    if (blocks := own_blocks(update.up, count)) is not None:
        downs = update.down.chunk(count)
        return [LoraUpdate(down, up, update.scale) for down, up in zip(downs, blocks, strict=True)]
    return [LoraUpdate(update.down, up, update.scale) for up in update.up.chunk(count)]


def fuse_rows(shares: Sequence[LoraUpdate | None]) -> LoraUpdate:
    """Make one update from those of equal shares of the rows; a share without one is not changed.

    Shares with the same down matrix share it again; others make a block-diagonal up.

    Raises:
        ValueError: the shares differ in size, or are DoRA's.
    """
    given = [share for share in shares if share is not None]
    first = given[0]
    if len(shares) == 1:
        return first
    if len({(share.up.shape[0], share.down.shape[1]) for share in given}) > 1:
        sizes = ", ".join(f"{share.down.shape[1]} to {share.up.shape[0]}" for share in given)
        raise ValueError(f"its parts must have equal sizes, but take and give {sizes} values")
    if any(share.magnitude is not None for share in given):
        raise ValueError("it is split and has a magnitude; DoRA is only known on whole layers")
    rows = first.up.shape[0]
    if all(share.scale == first.scale and torch.equal(share.down, first.down) for share in given):
        ups = [share.up if share is not None else torch.zeros_like(first.up) for share in shares]
        return LoraUpdate(first.down, torch.cat(ups), first.scale)
    # One scale for all: the others' is put into their matrices.
    scale = first.scale or 1.0
    blocks = [
        first.up.new_zeros(rows, 0) if share is None else _rescaled(share, scale).up for share in shares
    ]
    return LoraUpdate(torch.cat([share.down for share in given]), torch.block_diag(*blocks), scale)


def folded(update: LoraUpdate) -> LoraUpdate:
    """The same update with scale 1."""
    return _rescaled(update, 1.0)


def _rescaled(update: LoraUpdate, scale: float) -> LoraUpdate:
    if update.scale == scale:
        return update
    # A bf16 matrix becomes float32: rounding it again would change the update.
    exact = torch.promote_types(update.up.dtype, torch.float32)
    up = update.up.to(exact) * (update.scale / scale)
    return LoraUpdate(update.down, up, scale, update.magnitude)


def padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Bring both to a rank with zeros, which leaves up @ down exactly as it is."""
    more = rank - down.shape[0]
    if not more:
        return down, up
    return (
        torch.cat([down, down.new_zeros(more, down.shape[1])]),
        torch.cat([up, up.new_zeros(up.shape[0], more)], dim=1),
    )


def without_padding(downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Undo `padded` on all pairs alike: leave out the last ranks that are zero on both sides in every pair.

    Such a rank adds nothing and would never learn anything: both its gradients are zero. One always stays.
    """
    pairs = list(zip(downs, ups, strict=True))
    if any(down[-1].any() or up[:, -1].any() for down, up in pairs):
        return list(downs), list(ups)
    used = torch.stack([down.any(dim=1) | up.any(dim=0) for down, up in pairs]).any(dim=0)
    rank = int(used.nonzero().max()) + 1 if used.any() else 1
    return [down[:rank] for down in downs], [up[:, :rank] for up in ups]
