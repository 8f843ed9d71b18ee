"""The public functions: any grid on any device, images dense, autocast, what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from longcat_tune.model.block_sparse import block_sparse_attention, select_blocks

GRID = {"grid_q": (3, 5, 6), "grid_k": (3, 5, 6), "chunk_q": (2, 2, 2), "chunk_k": (2, 2, 2)}


def heads(tokens: int = 90, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, tokens, 16, generator=generator).to(dtype) for _ in range(3)]


def test_keeping_all_blocks_is_dense_attention() -> None:
    q, k, v = heads()
    out = block_sparse_attention(q, k, v, **GRID, sparsity=0.0)
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v), atol=1e-5)
    assert not torch.allclose(block_sparse_attention(q, k, v, **GRID, sparsity=0.9), out, atol=1e-2)


def test_one_frame_is_dense() -> None:
    q, k, v = heads(30)
    image = GRID | {"grid_q": (1, 5, 6), "grid_k": (1, 5, 6)}
    out = block_sparse_attention(q, k, v, **image)
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v), atol=1e-5)
    assert select_blocks(q, k, **image).all()


def test_given_mask_replaces_the_selection() -> None:
    q, k, v = heads()
    mask = select_blocks(q, k, **GRID, sparsity=0.7)
    chosen = block_sparse_attention(q, k, v, **GRID, sparsity=0.7)
    for given in (mask, mask.to(torch.uint8)):
        assert torch.equal(block_sparse_attention(q, k, v, **GRID, block_mask=given), chosen)


def test_autocast_computes_in_its_dtype() -> None:
    q, k, v = heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block_sparse_attention(q, k, v, **GRID, sparsity=0.5)
    rounded = block_sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), **GRID, sparsity=0.5)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rounded)


def test_tokens_that_do_not_fill_the_grid_are_refused() -> None:
    q, k, v = heads(89)
    with pytest.raises(ValueError, match=r"89.*\(3, 5, 6\).*90"):
        block_sparse_attention(q, k, v, **GRID)


def test_importing_the_model_loads_neither_triton_nor_torchs_compiler() -> None:
    asked = "import sys, longcat_tune.model.dit; print({'triton', 'torch._dynamo'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
