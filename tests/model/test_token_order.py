"""A model whose tokens lie in another order computes the same, with condition frames and caches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from longcat_tune.model.attention import PlanAttention, VideoAttention, math_attention
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.token_order import TokenGrid, TokenOrder

EXACT = {"atol": 2e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Shuffled:
    """Dense attention over tokens in a random order."""

    order: TokenOrder | None
    num_cond_tokens: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        c = self.num_cond_tokens
        cond = math_attention(q[:, :, :c], k[:, :, :c], v[:, :, :c])
        return torch.cat([cond, math_attention(q[:, :, c:], k, v)], dim=2)


def shuffle(seen: list[TokenGrid] | None = None) -> PlanAttention:
    """A plan that shuffles condition and other tokens among themselves."""

    def plan(grid: TokenGrid, device: torch.device) -> VideoAttention:
        generator = torch.Generator().manual_seed(5)
        cond = grid.cond_frames * grid.tokens_per_frame
        if grid.cond_frames == 0 and grid.frames == 1:
            cond = grid.num_keys
        rest = grid.num_keys - cond
        keys_M = torch.cat(
            [torch.randperm(cond, generator=generator), cond + torch.randperm(rest, generator=generator)]
        )
        if seen is not None:
            seen.append(grid)
        return Shuffled(TokenOrder.of(keys_M.to(device), grid), grid.num_cond_tokens)

    return plan


def small_model(plan: PlanAttention | None = None) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    model = LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16, attend=math_attention).eval()
    model.plan_attention = plan
    return model


def inputs(frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, frames, 4, 6, generator=generator)
    timestep_BT = torch.rand(2, frames, generator=generator) * 1000
    return latents, timestep_BT, torch.randn(2, 6, 8, generator=generator)


def test_an_order_can_be_undone() -> None:
    grid = TokenGrid(3, 2, 3, 1, 1)
    keys_M = torch.cat([torch.tensor([5, 4, 3, 2, 1, 0]), 6 + torch.randperm(12)])
    order = TokenOrder.of(keys_M, grid)
    x_BNC = torch.arange(12).view(1, 12, 1)
    assert torch.equal(order.restore(order.arrange(x_BNC)), x_BNC)
    assert torch.equal(order.arrange(x_BNC)[0, :, 0], keys_M[6:] - 6)
    assert torch.equal(order.frame_N, (keys_M[6:] - 6) // 6)
    assert (grid.num_keys, grid.num_cached, grid.num_cond_tokens) == (18, 6, 0)


@pytest.mark.parametrize("num_cond_latents", [0, 1, 2])
def test_the_order_of_tokens_does_not_matter(num_cond_latents: int) -> None:
    latents, timestep_BT, text = inputs()
    grads, samples = [], []
    for plan in (None, shuffle()):
        model = small_model(plan)
        sample = model(latents, timestep_BT, text, num_cond_latents=num_cond_latents)
        sample.square().mean().backward()
        samples.append(sample.detach())
        grads.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(samples[1], samples[0], **EXACT)
    torch.testing.assert_close(grads[1], grads[0], **EXACT)


def test_the_order_of_tokens_does_not_matter_with_a_cache() -> None:
    latents, timestep_BT, text = inputs()
    samples, seen = [], []
    for plan in (None, shuffle(seen)):
        model = small_model(plan)
        _, cache = model(
            latents[:1, :, :1], torch.zeros(1), text[:1], return_kv=True, skip_cross_attention=True
        )
        samples.append(model(latents[:, :, 1:], timestep_BT[:, 1:], text, num_cond_latents=1, kv_cache=cache))
    torch.testing.assert_close(samples[1], samples[0], **EXACT)
    assert seen == [TokenGrid(1, 2, 3), TokenGrid(3, 2, 3, 1, 1)]


def test_a_plan_may_leave_a_call_dense() -> None:
    latents, timestep_BT, text = inputs()
    model = small_model(lambda _grid, _device: None)
    assert torch.equal(model(latents, timestep_BT, text), small_model()(latents, timestep_BT, text))
