"""What the video tokens of a model call attend with: sparse where the clip is long enough, dense elsewhere.

Knows grids of tokens and the two kinds of attention; which calls may be sparse at all is told to it. Letters:
B batch, A heads, N a call's own tokens, M keys (cached tokens, then own), d head width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from longcat_tune.model.block_sparse.function import attend_in_blocks
from longcat_tune.model.block_sparse.partition import Grid, Partition, partition
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.token_order import TokenGrid, TokenOrder

logger = logging.getLogger(__name__)

DenseAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

MIN_KEY_BLOCKS = 16
"""With fewer the kept part of 1/16 is less than one block."""

PIXELS_OF_A_TOKEN = 16 * 16
"""8 x 8 pixels to a latent, 2 x 2 latents to a token."""

MIN_PIXELS = 750_000
"""Frames of the 720p class, the only ones that the authors make sparse; at 480p they are dense."""


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one kind, condition or noise, and the keys that they see.

    Attributes:
        queries: how its tokens are cut.
        keys: how the tokens are cut that they attend to; the first of the call's keys.
        sparse: whether the keys are enough to choose from.
    """

    queries: Partition
    keys: Partition
    sparse: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """One grid of tokens in block order: condition frames first, cut apart from the noise frames.

    Attributes:
        order: how the tokens lie.
        parts: of the call's own tokens, in order.
    """

    order: TokenOrder
    parts: tuple[Part, ...]


@lru_cache(maxsize=64)
def layout(grid: TokenGrid, chunk: Grid, device: torch.device) -> Layout:
    """Cut a call's tokens; made once for a grid, since every layer and step asks for the same.

    The condition frames are cut by themselves, whatever their number: their order then depends on their own
    grid only, as that of a cache must, and with full chunks the blocks are those of the whole grid.
    """
    frame = (grid.rows, grid.columns)
    cond, noise = (grid.cond_frames, *frame), (grid.frames - grid.cond_frames, *frame)
    kinds = tuple(kind for kind in (cond, noise) if kind[0])
    whole = partition(kinds, chunk, device)

    def part(kind: Grid, seen: Partition, frames: int) -> Part:
        sparse = frames > 1 and seen.num_blocks >= MIN_KEY_BLOCKS
        return Part(partition((kind,), chunk, device), seen, sparse)

    parts = []
    if grid.num_cond_tokens:
        parts.append(part(cond, partition((cond,), chunk, device), grid.cond_frames))
    if noise[0]:
        parts.append(part(noise, whole, grid.frames))
    # The tables outlive the call: made while sampling, they must still serve training.
    with torch.inference_mode(mode=False):
        return Layout(TokenOrder.of(whole.order_N, grid), tuple(parts))


@dataclass(frozen=True, slots=True)
class BlockSparseVideo:
    """Attention of one model call's video tokens, which lie in block order.

    Attributes:
        layout: of the call's grid.
        settings: of the checkpoint.
        dense: for parts whose keys are too few.
    """

    layout: Layout
    settings: BlockSparseSettings
    dense: DenseAttention

    @property
    def order(self) -> TokenOrder:
        """How the tokens lie."""
        return self.layout.order

    def __call__(self, q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor) -> Tensor:
        """Attend from a call's own tokens to all keys, cached ones first; condition sees only condition."""
        outs, first = [], 0
        for part in self.layout.parts:
            q = q_BANd[:, :, first : first + part.queries.num_tokens]
            k, v = k_BAMd[:, :, : part.keys.num_tokens], v_BAMd[:, :, : part.keys.num_tokens]
            if part.sparse:
                out: Tensor = attend_in_blocks(q, k, v, part.queries, part.keys, self.settings.rule)
            else:
                out = self.dense(q, k, v, None)
            outs.append(out)
            first += part.queries.num_tokens
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


class BlockSparsePlan:
    """Decides for every model call, and says once for every kind of clip what was decided and why.

    Args:
        settings: of the checkpoint.
        dense: attention of all other calls.
        min_pixels: frames with fewer are dense; 0: the user asked for block_sparse by name.
        find_fault: asked before the first sparse call, since trying the kernels means compiling them; a
            reason makes all calls dense.
    """

    def __init__(
        self,
        settings: BlockSparseSettings,
        dense: DenseAttention,
        *,
        min_pixels: int,
        find_fault: Callable[[], str | None],
    ) -> None:
        self.settings = settings
        self.dense = dense
        self.min_pixels = min_pixels
        self._find_fault = cache(find_fault)
        self._told: set[str] = set()

    def __call__(self, grid: TokenGrid, device: torch.device) -> BlockSparseVideo | None:
        """Attention for a grid of tokens; None: dense, frame by frame."""
        if grid.tokens_per_frame * PIXELS_OF_A_TOKEN < self.min_pixels:
            self._tell(
                f"dense, frames below {self.min_pixels / 1e6:g} megapixels: the model was made sparse for "
                "720p only, and a LoRA trained sparse would be used dense elsewhere; "
                "attention_implementation block_sparse forces the sparse kernel",
                grid,
            )
            return None
        fault = self._find_fault()
        if fault is not None:
            if fault not in self._told:
                self._told.add(fault)
                logger.warning("Block-sparse attention does not work here (%s): attention is dense", fault)
            return None
        made = layout(grid, self.settings.chunk, device)
        if made.parts[-1].sparse:
            kept = self.settings.rule.count(made.parts[-1].keys.num_blocks)
            self._tell(f"block-sparse, {kept} of {made.parts[-1].keys.num_blocks} key blocks", grid)
        elif grid.frames > 1:
            self._tell(f"dense, fewer than {MIN_KEY_BLOCKS} key blocks to choose from", grid)
        return BlockSparseVideo(made, self.settings, self.dense)

    def _tell(self, decision: str, grid: TokenGrid) -> None:
        if decision not in self._told:
            self._told.add(decision)
            logger.info(
                "Attention of %d latent frames of %d x %d tokens: %s",
                grid.frames,
                grid.columns,
                grid.rows,
                decision,
            )
