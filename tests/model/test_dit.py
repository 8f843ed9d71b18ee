"""Promises of the transformer beyond the golden numbers: text under the mask, autocast, refusals."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longcat_tune.model import dit
from longcat_tune.model.attention import sdpa_attention
from longcat_tune.model.dit import LongCatVideoTransformer
from tests.model.float64 import RefuseFloat64


def small_model(**changes: object) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16, **changes).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    text = torch.randn(2, 6, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    return latents, torch.tensor([900.0, 300.0]), text, mask


@pytest.mark.parametrize("zero_pad", [True, False])
def test_text_under_the_mask_does_not_matter(zero_pad: bool) -> None:
    model, (latents, timestep, text, mask) = small_model(text_tokens_zero_pad=zero_pad), inputs()
    junk = torch.where(mask[..., None].bool(), text, torch.full_like(text, 9.0))
    torch.testing.assert_close(
        model(latents, timestep, text, mask), model(latents, timestep, junk, mask), atol=1e-6, rtol=1e-5
    )


def test_the_number_of_zero_pads_does_matter() -> None:
    model, (latents, timestep, text, mask) = small_model(), inputs()
    shorter = model(latents, timestep, text[:, :4], mask[:, :4])
    assert (model(latents, timestep, text, mask) - shorter).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_pads_stand_for_all(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (latents, timestep, _, mask) = small_model().to(dtype), inputs()
    # Pads after the tokens, also between them, and nothing else.
    mask_BL = F.pad(torch.cat([mask, torch.zeros_like(mask[:1])]), (0, 506))
    mask_BL[1, 5:20] = 1
    text_BLD = torch.randn(3, 512, 8, generator=torch.Generator().manual_seed(2))
    batch = (latents[[0, 1, 1]], timestep[[0, 1, 1]], text_BLD)
    keys = []
    for block in model.blocks:
        block.cross_attn.kv_linear.register_forward_pre_hook(lambda _, given: keys.append(given[0].shape[1]))
    folded, full = model(*batch, mask_BL), model(*batch, torch.ones_like(mask_BL))
    assert keys == [21] * 2 + [512] * 2
    assert (folded - full).abs().max() > 1e-2
    monkeypatch.setattr(dit, "fold_pads", lambda text_BLD, mask_BL: (text_BLD, mask_BL, None))
    full = model(*batch, mask_BL)
    assert (folded - full).abs().max() < (1e-6 if dtype == torch.float32 else 1e-2) * full.abs().max()


def test_noise_frames_never_reach_condition_frames() -> None:
    model, (latents, timestep, text, mask) = small_model(), inputs()
    timestep_BT = timestep[:, None].repeat(1, 3)
    timestep_BT[:, 0] = 0
    changed = latents.clone()
    changed[:, :, 1:] += 1
    first = model(latents, timestep_BT, text, mask, num_cond_latents=1)
    second = model(changed, timestep_BT, text, mask, num_cond_latents=1)
    assert torch.equal(first[:, :, 0], second[:, :, 0])
    assert not torch.allclose(first[:, :, 1:], second[:, :, 1:])


def test_autocast_does_not_reach_the_float32_islands() -> None:
    model, (latents, timestep, text, mask) = small_model().bfloat16(), inputs()
    plain = model(latents, timestep, text, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = model(latents, timestep, text, mask)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(plain, under_autocast)


def test_odd_latents_are_refused() -> None:
    _, timestep, text, mask = inputs()
    with pytest.raises(ValueError, match=r"latents W \(5\) must be a multiple of the patch size 2"):
        small_model()(torch.zeros(2, 4, 3, 4, 5), timestep, text, mask)


def test_a_cache_without_condition_frames_is_refused() -> None:
    latents, timestep, text, mask = inputs()
    with pytest.raises(ValueError, match="num_cond_latents"):
        small_model()(latents, timestep, text, mask, kv_cache={})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_float64_reaches_the_device(dtype: torch.dtype) -> None:
    model, (latents, timestep, text, mask) = small_model().to(dtype), inputs()
    with RefuseFloat64("cpu"):
        model(latents, timestep, text, mask, num_cond_latents=1).sum().backward()


@torch.no_grad()
def test_values_are_let_go_before_the_feed_forward_and_a_cache_holds_nothing_else() -> None:
    latents, timestep, text, mask = inputs()
    values: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        if v.shape[2] == q.shape[2]:
            values.append(weakref.ref(v))
        return sdpa_attention(q, k, v, keep)

    def look(_module: Any, _inputs: Any) -> None:
        alive.append(values[-1]() is not None)

    model = small_model(attend=attend)
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(look)
    model(latents, timestep, text, mask)
    _, cache = model(latents, timestep, text, mask, return_kv=True)
    assert alive == [False] * 4
    for kept in (one for pair in cache.values() for one in pair):
        assert kept.untyped_storage().nbytes() == kept.nbytes
