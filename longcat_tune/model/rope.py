"""3-D rotary positions over latent frames, token rows and token columns; knows nothing of attention.

Letters: N video tokens in order (frame, row, column), d head width, B batch, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 10000.0


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosine and sine of every token's angles.

    Attributes:
        cos_Nd: float32 [N, d / 2], one column per pair of neighbouring channels.
        sin_Nd: float32 [N, d / 2].
    """

    cos_Nd: Tensor
    sin_Nd: Tensor

    def last(self, num_tokens: int) -> RotaryTable:
        """The positions of the last tokens, for queries that follow cached keys."""
        return RotaryTable(self.cos_Nd[-num_tokens:], self.sin_Nd[-num_tokens:])

    def first(self, num_tokens: int) -> RotaryTable:
        """The positions of the first tokens, for cached keys."""
        return RotaryTable(self.cos_Nd[:num_tokens], self.sin_Nd[:num_tokens])

    def of(self, places_M: Tensor) -> RotaryTable:
        """The positions of tokens that lie in another order; int64 places in this table."""
        return RotaryTable(self.cos_Nd[places_M], self.sin_Nd[places_M])


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to frames, rows and columns: 44, 42, 42 of 128.

    Source: meituan-longcat/LongCat-Video, longcat_video/modules/rope_3d.py.
    """
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_angles(grid: tuple[int, int, int], head_dim: int, *, device: torch.device | None = None) -> Tensor:
    """Angle of every token and channel pair, laid out [frame pairs | row pairs | column pairs].

    Args:
        grid: tokens along frames, rows and columns.
        head_dim: a multiple of 8.
        device: where the table is made; float32 throughout, because MPS has no float64.

    Returns:
        Float32 [N, head_dim / 2]: position * 10000^(-2j / axis width).
    """
    per_axis = []
    for axis, (size, width) in enumerate(zip(grid, axis_widths(head_dim), strict=True)):
        pairs = torch.arange(0, width, 2, device=device, dtype=torch.float32)
        angles = torch.outer(torch.arange(size, device=device, dtype=torch.float32), BASE ** (-pairs / width))
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        per_axis.append(angles.view(shape).expand(*grid, width // 2))
    return torch.cat(per_axis, dim=-1).flatten(0, 2)


def rotary_table(
    grid: tuple[int, int, int], head_dim: int, *, device: torch.device | None = None
) -> RotaryTable:
    """Cosines and sines of `rotary_angles`; the same arguments."""
    angles_Nd = rotary_angles(grid, head_dim, device=device)
    return RotaryTable(angles_Nd.cos(), angles_Nd.sin())


def rotate(x_BANd: Tensor, table: RotaryTable) -> Tensor:
    """Turn each pair of neighbouring channels (2j, 2j + 1) by its angle, in float32.

    Args:
        x_BANd: queries or keys [B, A, N, d].
        table: angles of the same N tokens.

    Returns:
        Same shape and dtype as the input.
    """
    even, odd = x_BANd.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * table.cos_Nd - odd * table.sin_Nd, odd * table.cos_Nd + even * table.sin_Nd)
    return torch.stack(turned, dim=-1).flatten(-2).to(x_BANd.dtype)
