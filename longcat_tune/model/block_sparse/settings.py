"""What a checkpoint says about block-sparse attention: its chunk and how many blocks are kept.

Source: bsa_params of the released dit/config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from longcat_tune.errors import CheckpointError
from longcat_tune.model.block_sparse.partition import Grid
from longcat_tune.model.block_sparse.selection import SelectionRule


@dataclass(frozen=True, slots=True)
class BlockSparseSettings:
    """How the model was trained to attend sparsely; the defaults are the released checkpoint's.

    Attributes:
        chunk: frames, rows and columns of a block, of queries as of keys.
        rule: how many key blocks a query block keeps.
    """

    chunk: Grid = (4, 4, 4)
    rule: SelectionRule = field(default_factory=SelectionRule)


def read_block_sparse_settings(folder: Path) -> BlockSparseSettings:
    """The settings of a transformer folder's config.json; the released ones where it has none.

    Raises:
        CheckpointError: chunks of queries and keys differ, so that no order of tokens serves both, or a value
            is out of range.
    """
    path = folder / "config.json"
    params = json.loads(path.read_text(encoding="utf-8")).get("bsa_params") or {}
    default = BlockSparseSettings()
    chunks = [tuple(params.get(f"chunk_3d_shape_{side}", default.chunk)) for side in ("q", "k")]
    if chunks[0] != chunks[1] or len(chunks[0]) != 3:
        raise CheckpointError(
            f"{path}: chunk_3d_shape_q {list(chunks[0])} and chunk_3d_shape_k {list(chunks[1])} of "
            "bsa_params must be the same three numbers; set attention_implementation to sdpa"
        )
    try:
        rule = SelectionRule(params.get("sparsity", default.rule.sparsity), params.get("cdf_threshold"))
    except ValueError as error:
        raise CheckpointError(f"{path}: bsa_params: {error}; set attention_implementation to sdpa") from error
    frames, rows, columns = chunks[0]
    return BlockSparseSettings((frames, rows, columns), rule)
