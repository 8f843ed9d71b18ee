"""Block-sparse attention over 3-D blocks of tokens, on any grid, with gradients.

Imports no Triton until a kernel is launched.
"""

from longcat_tune.model.block_sparse.attention import block_sparse_attention, select_blocks

__all__ = ["block_sparse_attention", "select_blocks"]
