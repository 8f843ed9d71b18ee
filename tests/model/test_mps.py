"""What runs on the device has no float64 and no page-locked memory, as Apple's MPS demands.

The meta device stands for it: tensors there have dtypes but no data, so that reading one back fails, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.flow.weighting import weighting
from longcat_tune.memory.frozen import freeze_linears
from longcat_tune.memory.lanes import Lane
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream
from longcat_tune.model import rope
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.sampling.denoise import Guidance, TextCondition, denoise
from longcat_tune.training.ema import Ema
from longcat_tune.training.step import draw, noise_generator, to_device, training_step
from longcat_tune.types import Batch
from tests.model.float64 import RefuseFloat64

META = torch.device("meta")


@contextmanager
def on_meta() -> Iterator[None]:
    """As on an accelerator, but that the meta device knows no autocast, which is off wherever it is named."""
    with pytest.MonkeyPatch.context() as patch, RefuseFloat64("meta"):
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        yield


def small_model(dtype: torch.dtype) -> LongCatVideoTransformer:
    model = LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16).to(META, dtype)
    return model.requires_grad_(requires_grad=False)


def batch(num_cond_latents: int) -> Batch:
    return Batch(
        latents_BCTHW=torch.randn(2, 4, 3, 4, 4).bfloat16(),
        text_BLD=torch.randn(2, 6, 8).bfloat16(),
        mask_BL=torch.ones(2, 6, dtype=torch.bool),
        num_cond_latents=num_cond_latents,
        clip_ids=("a", "b"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_cond_latents", [0, 1])
def test_a_training_step_has_no_float64_on_the_device(dtype: torch.dtype, num_cond_latents: int) -> None:
    model = small_model(dtype)
    targets = [name for name, one in model.named_modules() if isinstance(one, nn.Linear) and "blocks" in name]
    add_lora(model, targets=targets, rank=2, alpha=2, generator=torch.Generator().manual_seed(0))
    enable_recompute(model.blocks)
    model.ffn_chunk_tokens = 5
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    # On the meta device no weight moves, so that its dtype is all there is to see.
    optimizer = torch.optim.AdamW([weight for _, weight in named], lr=1e-3)
    density = SigmaDensity("logit_normal", shift=3.0, min_sigma=0.1)
    sigma_B, noise = draw(batch(num_cond_latents), density.sample, noise_generator(0, step=1, micro_batch=0))
    weigh = weighting("bell", density)
    with on_meta():
        output = training_step(
            model,
            to_device(batch(num_cond_latents), META),
            sigma_B=sigma_B.to(META),
            noise_BCTHW=noise.to(META),
            huber_c=0.1,
        )
        (weigh(output.sigma_B) * output.loss_B).mean().backward()
        torch.nn.utils.clip_grad_norm_([weight for _, weight in named], 1.0)
        optimizer.step()
        Ema(named, 0.99).update()
    assert {weight.grad.dtype for _, weight in named} == {torch.float32}


@pytest.mark.parametrize("use_kv_cache", [False, True])
def test_a_render_has_no_float64_on_the_device(use_kv_cache: bool) -> None:
    text = TextCondition(torch.zeros(1, 6, 8, device=META), torch.ones(1, 6, device=META))
    with on_meta():
        latents = denoise(
            small_model(torch.bfloat16),
            torch.zeros(1, 4, 3, 4, 4, device=META),
            inference_sigmas(2, 12.0),
            text,
            guidance=Guidance(4.0, text),
            num_cond_latents=1,
            use_kv_cache=use_kv_cache,
        )
    assert latents.dtype == torch.float32


def test_streamed_blocks_have_no_float64_on_the_device() -> None:
    blocks = LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16).blocks
    with on_meta():
        stream = BlockStream(device=META)
        for block in blocks:
            freeze_linears(block, in_float32=(Float32Linear,))
            stream.add(block)
        assert stream.device_bytes > 0


def test_a_float64_on_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rope.rotary_angles
    monkeypatch.setattr(rope, "rotary_angles", lambda *given, **named: plain(*given, **named).double())
    with pytest.raises(AssertionError, match="aten"), on_meta():
        small_model(torch.float32)(
            torch.zeros(1, 4, 3, 4, 4, device=META),
            torch.zeros(1, device=META),
            torch.zeros(1, 6, 8, device=META),
        )


def test_nothing_is_page_locked_for_mps() -> None:
    assert not Lane(torch.device("mps")).overlaps


@pytest.mark.parametrize(("device", "beside"), [("mps", False), ("cuda", True)])
def test_a_copy_to_mps_is_waited_for(device: str, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def to(tensor: torch.Tensor, _device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        asked.append(non_blocking)
        return tensor

    whole = batch(0)
    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device(whole, torch.device(device))
    assert asked == [beside] * 3
