"""Which calls of the model are sparse, in which order their tokens lie; the model computes the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_tune.model.attention import AttentionChoice, choose_attention, sdpa_attention
from longcat_tune.model.block_sparse import block_sparse_attention, function, plan
from longcat_tune.model.block_sparse.partition import count_blocks
from longcat_tune.model.block_sparse.plan import BlockSparsePlan, layout
from longcat_tune.model.block_sparse.selection import SelectionRule, select_lists
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.token_order import TokenGrid
from tests.model.block_sparse.blocks import CPU

SMALL = BlockSparseSettings((2, 2, 2), SelectionRule(0.75))
"""A chunk that makes enough blocks of the grids below."""

LATENTS = (16, 5, 10, 12)
"""Channels, frames, rows, columns: 5 x 5 x 6 tokens, cut by edges along every axis."""


def make_plan(settings: BlockSparseSettings = SMALL, *, min_pixels: int = 0, fault: str | None = None):
    return BlockSparsePlan(settings, sdpa_attention, min_pixels=min_pixels, find_fault=lambda: fault)


def make_model(depth: int = 2) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    model = LongCatVideoTransformer(
        hidden_size=64, depth=depth, num_heads=2, caption_channels=16, adaln_tembed_dim=32
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model.requires_grad_(False)


def inputs(*, cond: int = 0, uniform: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    timestep = torch.full((2, LATENTS[1]), 700.0)
    if not uniform:
        timestep = torch.rand(2, LATENTS[1], generator=generator) * 1000
    timestep[:, :cond] = 0
    return {
        "latents": torch.randn(2, *LATENTS, generator=generator),
        "timestep": timestep,
        "text": torch.randn(2, 3, 16, generator=generator),
        "num_cond_latents": cond,
    }


class FrameByFrame:
    """The same attention with tokens frame by frame: every layer permutes for itself."""

    order = None

    def __init__(self, grid: TokenGrid, settings: BlockSparseSettings) -> None:
        self.grid, self.settings = grid, settings

    def attend(self, q: Tensor, k: Tensor, v: Tensor, frames_q: int, frames_k: int) -> Tensor:
        frame = (self.grid.rows, self.grid.columns)
        chunk = self.settings.chunk
        return block_sparse_attention(
            q,
            k,
            v,
            grid_q=(frames_q, *frame),
            grid_k=(frames_k, *frame),
            chunk_q=chunk,
            chunk_k=chunk,
            sparsity=self.settings.rule.sparsity if count_blocks((frames_k, *frame), chunk) >= 16 else 0.0,
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cond, frames = self.grid.cond_frames, self.grid.frames
        first = self.grid.num_cond_tokens
        noise = self.attend(q[:, :, first:], k, v, frames - cond, frames)
        if not first:
            return noise
        own = self.attend(q[:, :, :first], k[:, :, :first], v[:, :, :first], cond, cond)
        return torch.cat([own, noise], dim=2)


def outputs_and_gradients(model: LongCatVideoTransformer, plan_attention: Any, **call: Any) -> list[Tensor]:
    latents = call.pop("latents").clone().requires_grad_()
    model.plan_attention = plan_attention
    weights = [model.blocks[0].attn.qkv.weight.requires_grad_()]
    out = model(latents, **call)
    return [out.detach(), *torch.autograd.grad(out.square().mean(), [latents, *weights])]


def assert_close(got: list[Tensor], right: list[Tensor]) -> None:
    for mine, expected in zip(got, right, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("cond", "uniform"), [(0, True), (0, False), (2, True), (4, True)])
def test_model_in_block_order_computes_what_it_computes_frame_by_frame(cond: int, uniform: bool) -> None:
    model, call = make_model(), inputs(cond=cond, uniform=uniform)
    in_blocks = outputs_and_gradients(model, make_plan(), **call)
    by_frame = outputs_and_gradients(model, lambda grid, _: FrameByFrame(grid, SMALL), **call)
    dense = outputs_and_gradients(model, None, **call)
    assert_close(in_blocks, by_frame)
    assert (in_blocks[0] - dense[0]).abs().max() > 1e-3, "nothing was left out"


@pytest.mark.parametrize("cond", [1, 2, 3])
def test_cached_condition_frames_give_what_given_ones_give(cond: int) -> None:
    model, call = make_model(), inputs(cond=cond)
    model.plan_attention = make_plan()
    latents, timestep, text = call["latents"], call["timestep"], call["text"]
    whole = model(**call)
    _, cache = model(
        latents[:, :, :cond], timestep[:, :cond], text, return_kv=True, skip_cross_attention=True
    )
    noise = model(latents[:, :, cond:], timestep[:, cond:], text, num_cond_latents=cond, kv_cache=cache)
    torch.testing.assert_close(noise, whole[:, :, cond:], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
def test_training_with_kernels_gives_the_gradients_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    model, call = make_model(depth=1), inputs(cond=1)
    call |= {name: call[name][:1] for name in ("latents", "timestep", "text")}
    few = BlockSparseSettings((2, 2, 2), SelectionRule(0.9))
    right = outputs_and_gradients(model, make_plan(few), **call)

    def by_kernel(q, k, v, queries, keys, rule):
        lists = select_lists(q, k, queries, keys, rule)
        return function.attend_by_kernel(q, k, v, lists, queries, keys)

    monkeypatch.setattr(plan, "attend_in_blocks", by_kernel)
    assert_close(outputs_and_gradients(model, make_plan(few), **call), right)


def test_lora_learns_through_block_sparse_attention() -> None:
    model, call = make_model(), inputs()
    model.plan_attention = make_plan()
    add_lora(
        model,
        targets=[f"blocks.{number}.attn.qkv" for number in range(2)],
        rank=4,
        alpha=4,
        generator=torch.Generator().manual_seed(2),
    )
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for factor in factors:
            factor.add_(0.3 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(3)))
        target = model(**call)
        for factor in factors:
            factor.mul_(0.5)
    optimizer = torch.optim.AdamW(factors, lr=0.01)
    losses = []
    for _ in range(25):
        loss = (model(**call) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def grid(frames: int, rows: int = 45, columns: int = 80, **cond: int) -> TokenGrid:
    return TokenGrid(frames, rows, columns, **cond)


def test_auto_is_sparse_from_three_quarters_of_a_megapixel_on(caplog: pytest.LogCaptureFixture) -> None:
    automatic = make_plan(BlockSparseSettings(), min_pixels=plan.MIN_PIXELS)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert automatic(grid(24, 30, 52), CPU) is None
            assert automatic(grid(24, 44, 66), CPU) is None
            made = automatic(grid(24, 44, 67), CPU)
            assert made is not None
            assert made.layout.parts[0].sparse
    assert len(caplog.messages) == 2
    assert "24 latent frames of 52 x 30 tokens: dense" in caplog.messages[0]
    assert "block_sparse forces" in caplog.messages[0]
    assert "block-sparse, 70 of 1122 key blocks" in caplog.messages[1]


def test_images_and_few_blocks_are_dense(caplog: pytest.LogCaptureFixture) -> None:
    forced = make_plan(BlockSparseSettings())
    with caplog.at_level(logging.INFO):
        image, short, enough = (forced(grid(*size), CPU) for size in ((1, 44, 80), (4, 12, 20), (4, 16, 16)))
    assert [made.layout.parts[-1].sparse for made in (image, short, enough)] == [False, False, True]
    assert "fewer than 16 key blocks" in caplog.messages[0]
    q, k, v = torch.randn(3, 1, 1, 960, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(short(q, k, v), sdpa_attention(q, k, v))


def test_each_kind_of_token_is_judged_by_the_keys_it_sees() -> None:
    one, two = (layout(grid(6, 12, 12, cond_frames=cond), (2, 4, 4), CPU) for cond in (1, 4))
    assert [part.sparse for part in one.parts] == [False, True]
    assert [part.sparse for part in two.parts] == [True, True]
    cached = layout(grid(6, 12, 12, cond_frames=4, cached_frames=4), (2, 4, 4), CPU)
    assert [part.queries.num_tokens for part in cached.parts] == [2 * 144]
    assert cached.parts[0].keys.num_tokens == 6 * 144


def test_a_fault_makes_all_calls_dense_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = []
    faulty = BlockSparsePlan(
        SMALL, sdpa_attention, min_pixels=0, find_fault=lambda: asked.append(1) or "no compiler"
    )
    assert faulty(grid(24), CPU) is None
    assert faulty(grid(16), CPU) is None
    assert len(asked) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no compiler" in record.getMessage()


def test_kernels_are_not_tried_for_clips_that_are_dense_anyway() -> None:
    def never() -> str:
        raise AssertionError

    small = BlockSparsePlan(SMALL, sdpa_attention, min_pixels=plan.MIN_PIXELS, find_fault=never)
    assert small(grid(24, 30, 52), CPU) is None


def test_order_made_while_sampling_serves_training() -> None:
    layout.cache_clear()
    with torch.inference_mode():
        made = layout(TokenGrid(5, 5, 6), (2, 2, 2), CPU)
    assert not made.order.own_N.is_inference()
    assert not made.order.frame_N.is_inference()


def choose(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> AttentionChoice:
    return choose_attention(
        name, device=torch.device(device), dtype=dtype, head_dim=32, training=True, block_sparse=SMALL
    )


def test_named_block_sparse_takes_every_moving_clip() -> None:
    choice = choose("block_sparse", "cpu")
    assert choice.plan is not None
    made = choice.plan(grid(24, 30, 52), CPU)
    assert made is not None
    assert made.layout.parts[0].sparse
    assert choice.description.startswith("block-sparse for moving clips, else sdpa")


def test_auto_without_cuda_is_dense() -> None:
    assert choose("auto", "cpu").plan is None
