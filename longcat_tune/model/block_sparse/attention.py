"""Block-sparse attention of tokens that lie frame by frame; the model keeps them in block order instead.

Letters: B batch, A heads, N query tokens, M key tokens, d head width, Q query blocks, K key blocks.
"""

from __future__ import annotations

from torch import Tensor

from longcat_tune.model.block_sparse.function import attend_by_mask, attend_in_blocks
from longcat_tune.model.block_sparse.partition import Grid, Partition, partition
from longcat_tune.model.block_sparse.selection import SelectionRule, select_mask

CHUNK: Grid = (4, 4, 4)


def block_sparse_attention(  # noqa: PLR0913 - grids, chunks and the rule are the method's own parameters
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid_q: Grid,
    grid_k: Grid,
    chunk_q: Grid = CHUNK,
    chunk_k: Grid = CHUNK,
    sparsity: float | None = 0.9375,
    cdf_threshold: float | None = None,
    block_mask: Tensor | None = None,
) -> Tensor:
    """Attend from every block of queries to the key blocks whose means fit it best.

    Grids need not be multiples of the chunks: blocks at the far edges are smaller. Keys of a single frame are
    all attended to, as the model does with images. Gradients are those of attention with the chosen blocks
    held constant. CUDA runs Triton kernels, other devices the definition.

    Args:
        q: [B, A, N, d], tokens by frame, row and column of grid_q.
        k: [B, A, M, d], likewise of grid_k.
        v: [B, A, M, d].
        grid_q: frames, rows and columns of tokens.
        grid_k: likewise; may differ.
        chunk_q: frames, rows and columns of a query block.
        chunk_k: of a key block.
        sparsity: the part of the key blocks that is dropped; at least one is kept. None: cdf_threshold alone.
        cdf_threshold: keep the best blocks whose softmax weights sum to at most this; with sparsity too, the
            greater count of both.
        block_mask: boolean or 0 and 1, [B, A, Q, K], blocks by frame, row and column; replaces the selection.
            A row without any block gives zeros.

    Returns:
        [B, A, N, d].

    Raises:
        ValueError: the tokens do not fill a grid, or a chunk or the sparsity is out of range.
    """
    queries, keys = _cut(q, grid_q, chunk_q), _cut(k, grid_k, chunk_k)
    heads = (
        q.index_select(2, queries.order_N),
        k.index_select(2, keys.order_N),
        v.index_select(2, keys.order_N),
    )
    if block_mask is None:
        out = attend_in_blocks(*heads, queries, keys, _rule(grid_k, sparsity, cdf_threshold))
    else:
        out = attend_by_mask(*heads, queries, keys, block_mask.bool())
    return out.index_select(2, queries.order_N.argsort())


def select_blocks(
    q: Tensor,
    k: Tensor,
    *,
    grid_q: Grid,
    grid_k: Grid,
    chunk_q: Grid = CHUNK,
    chunk_k: Grid = CHUNK,
    sparsity: float | None = 0.9375,
    cdf_threshold: float | None = None,
) -> Tensor:
    """Which key blocks each query block would attend to; the arguments of `block_sparse_attention`.

    Returns:
        Boolean [B, A, Q, K], blocks by frame, row and column.

    Raises:
        ValueError: the tokens do not fill a grid, or a chunk or the sparsity is out of range.
    """
    queries, keys = _cut(q, grid_q, chunk_q), _cut(k, grid_k, chunk_k)
    rule = _rule(grid_k, sparsity, cdf_threshold)
    return select_mask(
        q.index_select(2, queries.order_N), k.index_select(2, keys.order_N), queries, keys, rule
    )


def _rule(grid_k: Grid, sparsity: float | None, cdf_threshold: float | None) -> SelectionRule:
    """The given rule; keys of one frame are all kept, as the model keeps them for an image."""
    return SelectionRule(0.0) if grid_k[0] == 1 else SelectionRule(sparsity, cdf_threshold)


def _cut(tokens: Tensor, grid: Grid, chunk: Grid) -> Partition:
    cut = partition((tuple(grid),), tuple(chunk), tokens.device)
    if tokens.shape[2] != cut.num_tokens:
        raise ValueError(f"tokens ({tokens.shape[2]}) must fill the grid {grid}, {cut.num_tokens}")
    return cut
