"""Where the video tokens of one model call are: on which grid, and in which order in memory.

Knows no attention and no weights. Letters: B batch, N the call's own tokens, M keys (cached tokens, then
own), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """The video tokens of one model call.

    Attributes:
        frames: latent frames of all keys, cached ones included.
        rows: of tokens in a frame.
        columns: of tokens in a frame.
        cond_frames: leading condition frames, cached or not.
        cached_frames: those of them that are keys only, from a cache: none or all.
    """

    frames: int
    rows: int
    columns: int
    cond_frames: int = 0
    cached_frames: int = 0

    @property
    def tokens_per_frame(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns

    @property
    def num_keys(self) -> int:
        """Tokens that are attended to: M."""
        return self.frames * self.tokens_per_frame

    @property
    def num_cached(self) -> int:
        """Tokens of the cache."""
        return self.cached_frames * self.tokens_per_frame

    @property
    def num_cond_tokens(self) -> int:
        """Condition tokens among the call's own."""
        return (self.cond_frames - self.cached_frames) * self.tokens_per_frame


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """Tokens in another order than frame by frame; made by `of`.

    Attributes:
        keys_M: int64, the place on the grid (frame, row, column) of every key.
        own_N: int64, where each of the call's own tokens comes from in x as the patches gave it.
        back_N: int64, the inverse of own_N.
        frame_N: int64, the own latent frame of each own token.
    """

    keys_M: Tensor
    own_N: Tensor
    back_N: Tensor
    frame_N: Tensor

    @classmethod
    def of(cls, keys_M: Tensor, grid: TokenGrid) -> TokenOrder:
        """Take an order of all keys apart.

        Args:
            keys_M: int64 permutation of the grid's tokens; cached and condition tokens come first, in an
                order that only depends on their own grid, so that a cache fits every call.
            grid: of the call.
        """
        own_N = keys_M[grid.num_cached :] - grid.num_cached
        return cls(keys_M, own_N, own_N.argsort(), own_N // grid.tokens_per_frame)

    def arrange(self, x_BNC: Tensor) -> Tensor:
        """Own tokens that lie frame by frame, in this order."""
        return x_BNC.index_select(1, self.own_N)

    def restore(self, x_BNC: Tensor) -> Tensor:
        """Own tokens in this order, frame by frame again."""
        return x_BNC.index_select(1, self.back_N)
