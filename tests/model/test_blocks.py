"""A block's memory, and a feed-forward that takes some tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longcat_tune.model.attention import sdpa_attention
from longcat_tune.model.blocks import Block, BlockContext, FeedForward
from longcat_tune.model.elementwise import LEAN, Elementwise
from longcat_tune.model.lora import add_lora
from longcat_tune.model.rope import rotary_table
from tests.model.saved_bytes import PlainElementwise, saved_bytes

PLAIN = PlainElementwise()
GRID = (3, 6, 8)
TOKENS, CHANNELS, TEXT = 144, 64, 7
INNER = 256


def block() -> Block:
    torch.manual_seed(0)
    return Block(CHANNELS, 2, 4, 16, sdpa_attention).bfloat16().requires_grad_(requires_grad=False)


def context(elementwise: Elementwise, ffn_chunk_tokens: int | None = None) -> BlockContext:
    generator = torch.Generator().manual_seed(1)
    return BlockContext(
        time_BTE=torch.randn(1, GRID[0], 16, generator=generator),
        text_BLC=torch.randn(1, TEXT, CHANNELS, generator=generator).bfloat16(),
        keep_BL=None,
        rotary=rotary_table(GRID, CHANNELS // 2),
        num_cond_tokens=0,
        skip_cross_attention=False,
        elementwise=elementwise,
        ffn_chunk_tokens=ffn_chunk_tokens,
    )


def kept_values_per_token(elementwise: Elementwise, ffn_chunk_tokens: int | None = None) -> float:
    """Of a frozen bf16 block, in units of its width."""
    one, x_BNC = block(), torch.randn(1, TOKENS, CHANNELS).bfloat16().requires_grad_()
    shared = context(elementwise, ffn_chunk_tokens)
    held = [x_BNC, *one.parameters(), shared.text_BLC, shared.time_BTE]
    held += [shared.rotary.cos_Nd, shared.rotary.sin_Nd]
    return saved_bytes(lambda: one(x_BNC, shared), held) / (x_BNC.nbytes)


def test_a_block_keeps_bf16_activations_only() -> None:
    # Queries, keys and values 3, rotated queries and keys 2, attended 1; sums after either attention 2;
    # cross-attention: queries 1, normalised 1, attended 1; feed-forward: 2 x 256 / 64 = 8. Text, frames and
    # statistics of the softmax add half a unit.
    lean = kept_values_per_token(LEAN)
    assert 19 <= lean <= 19.6
    # Plain: float32 copies of x before three norms and of queries and keys before three more, 2 units each;
    # SiLU's result, 4; less the two sums, of which only the copies are kept.
    assert kept_values_per_token(PLAIN) - lean == pytest.approx(3 * 2 + 3 * 2 + 4 - 2, abs=0.6)


def test_a_chunked_feed_forward_keeps_its_input_only() -> None:
    unchunked, chunked = kept_values_per_token(LEAN), kept_values_per_token(LEAN, 16)
    assert unchunked - chunked == pytest.approx(2 * INNER / CHANNELS - 1, abs=0.01)


class Scaled(nn.Module):
    """Enough of a model for LoRA: PEFT wants a parent."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = FeedForward(CHANNELS, INNER)


def result_and_gradients(chunk_tokens: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Scaled()
    generator = torch.Generator().manual_seed(1)
    add_lora(model, targets=["ffn.w1", "ffn.w2", "ffn.w3"], rank=4, alpha=4, generator=generator)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=generator)
    x_BNC = torch.randn(2, TOKENS, CHANNELS, generator=generator).requires_grad_()
    out = model.ffn(x_BNC, chunk_tokens=chunk_tokens)
    out.square().sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return out.detach(), x_BNC.grad, grads


@pytest.mark.parametrize("chunk_tokens", [16, 100, TOKENS, 1000])
def test_a_chunked_feed_forward_gives_the_same_numbers(chunk_tokens: int) -> None:
    out, grad, lora_grads = result_and_gradients(None)
    chunked_out, chunked_grad, chunked_lora_grads = result_and_gradients(chunk_tokens)
    assert torch.equal(chunked_out, out)
    assert torch.equal(chunked_grad, grad)
    assert len(lora_grads) == 6
    for name, expected in lora_grads.items():
        # The chunks' gradients are summed in another order than those of the tokens in one product.
        error = (chunked_lora_grads[name] - expected).norm() / expected.norm()
        assert error < 1e-6, name


@torch.no_grad()
def test_chunks_are_not_noticed_without_gradients() -> None:
    torch.manual_seed(0)
    ffn, x_BNC = FeedForward(CHANNELS, INNER), torch.randn(1, TOKENS, CHANNELS)
    rows: list[int] = []
    ffn.w1.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[1]))
    assert torch.equal(ffn(x_BNC, chunk_tokens=60), ffn(x_BNC))
    assert rows == [60, 60, 24, 144]
