"""The attention functions agree with the written-out definition, masked and in bf16 layouts."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.model.attention import ATTENTION_FUNCTIONS, math_attention

REAL_LAYOUTS = [((2, 4, 18, 32), 18), ((1, 2, 12, 64), 30), ((2, 2, 7, 128), 5)]


@pytest.mark.parametrize("name", sorted(ATTENTION_FUNCTIONS))
@pytest.mark.parametrize(("shape", "keys"), REAL_LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_functions_equal_the_definition(name: str, shape: tuple[int, ...], keys: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, heads, _, width = shape
    q = torch.randn(shape, generator=generator)
    k, v = torch.randn(2, batch, heads, keys, width, generator=generator)
    keep = None
    if masked:
        keep = (torch.arange(keys) < torch.tensor([[keys - 2], [3]])[:batch])[:, None, None, :]
    expected = math_attention(q, k, v, keep)
    torch.testing.assert_close(ATTENTION_FUNCTIONS[name](q, k, v, keep), expected, atol=2e-6, rtol=1e-5)


def test_the_definition_stays_float32_under_autocast() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = math_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(math_attention(q, k, v), expected)
