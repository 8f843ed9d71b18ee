"""Streaming on a CUDA device: races, the peak, page-locked memory, and the share of waiting.

Needs a CUDA device. Nothing here asserts how long anything takes; --log-cli-level=INFO shows it.
"""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from longcat_tune.memory import host_memory
from longcat_tune.memory.boundaries import Boundaries
from longcat_tune.memory.frozen import freeze_linears
from longcat_tune.memory.host_memory import HostMemory
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream
from longcat_tune.model.attention import AttentionFunction, math_attention, sdpa_attention
from longcat_tune.model.blocks import Float32Linear
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora
from longcat_tune.model.lora_targets import lora_target_modules

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

logger = logging.getLogger(__name__)

DEVICE = torch.device("cuda", 0)
SAME = 2e-3
"""Relative error that another order of sums may make in bf16."""

DEPTH = 8
WIDTH = 1024

KINDS: list[dict[str, Any]] = [
    {"slots": 2},
    {"slots": 3, "group": 2},
    {"slots": 1, "overlap": False},
    {"slots": 2, "by_layer": True},
]

Step = tuple[Tensor, dict[str, Tensor]]


def model_on_host(attend: AttentionFunction) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    model = LongCatVideoTransformer(16, 16, WIDTH, DEPTH, 8, 64, 4, 128, 256, attend=attend)
    return model.to(torch.bfloat16).requires_grad_(requires_grad=False)


def adapted(model: LongCatVideoTransformer) -> LongCatVideoTransformer:
    names = lora_target_modules(model, "all-linear")
    add_lora(model, targets=names, rank=8, alpha=8, generator=Generator().manual_seed(1), autocast=True)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            fresh = torch.randn(weight.shape, generator=Generator().manual_seed(len(name)))
            weight.data.copy_(0.02 * fresh)
    return model


def resident_model(attend: AttentionFunction = math_attention) -> LongCatVideoTransformer:
    model = model_on_host(attend)
    # As FrozenLinear too, so that both take the same products.
    for block in model.blocks:
        freeze_linears(block, in_float32=(Float32Linear,))
    return adapted(model.to(DEVICE))


def streamed_model(
    attend: AttentionFunction = math_attention, **kind: Any
) -> tuple[LongCatVideoTransformer, BlockStream]:
    model, stream = model_on_host(attend), BlockStream(device=DEVICE, **kind)
    for block in model.blocks:
        freeze_linears(block, in_float32=(Float32Linear,))
        stream.add(block)
    for name, part in model.named_children():
        if name != "blocks":
            part.to(DEVICE)
    return adapted(model), stream


def step(model: LongCatVideoTransformer, *, frames: int = 3, size: int = 16) -> Step:
    """Loss and gradients; the host runs ahead of the device as in a run."""
    generator = Generator().manual_seed(2)
    latents = torch.randn(1, 16, frames, size, size, generator=generator).to(DEVICE)
    text = torch.randn(1, 32, 64, generator=generator).to(DEVICE)
    model.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(latents, torch.tensor([700.0], device=DEVICE), text).square().mean()
    loss.backward()
    return loss.detach(), {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def worst(one: Step, other: Step) -> float:
    """The largest relative error of loss and gradients."""
    assert one[1].keys() == other[1].keys()
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in one[1])]
    return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def peak(work: Callable[[], object]) -> int:
    """Bytes of device memory that are in use at most while the work goes on."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(DEVICE)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("interval", [1, 2])
def test_many_steps_in_a_row_equal_the_resident_one(kind, offload, interval):
    """The weights of another block, or of half of it, are off by far more than the order of sums."""
    expected = step(resident_model())
    model, _ = streamed_model(**kind)
    enable_recompute(
        model.blocks, interval=interval, boundaries=Boundaries(DEVICE, at_least_bytes=0) if offload else None
    )
    for _ in range(10):
        assert worst(step(model), expected) < SAME


def test_fused_attention_stays_within_bf16():
    expected = step(resident_model(sdpa_attention), frames=9, size=32)
    model, _ = streamed_model(sdpa_attention)
    enable_recompute(model.blocks, boundaries=Boundaries(DEVICE))
    for _ in range(5):
        assert worst(step(model, frames=9, size=32), expected) < 0.02


class Tiny(nn.Module):
    """Almost no computation for a lot of weight: every copy is late, and every slot wanted again at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2048, 2048, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.tanh(self.inner(x))


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_copies_that_are_always_late_spoil_nothing(slots, offload):
    torch.manual_seed(0)
    blocks = nn.ModuleList(Tiny() for _ in range(16)).requires_grad_(requires_grad=False)
    resident = copy.deepcopy(blocks).to(DEVICE)
    for block in resident:
        freeze_linears(block)
    stream = BlockStream(device=DEVICE, slots=slots)
    for block in blocks:
        freeze_linears(block)
        stream.add(block)
    boundaries = Boundaries(DEVICE, at_least_bytes=0) if offload else None
    enable_recompute(blocks, boundaries=boundaries)

    def gradient(of: nn.ModuleList) -> Tensor:
        x = start = torch.linspace(-1, 1, 4 * 2048, device=DEVICE).view(4, 2048).requires_grad_()
        for block in of:
            x = block(x)
        x.square().sum().backward()
        return start.grad

    expected = gradient(resident)
    results = [gradient(blocks) for _ in range(50)]
    assert all(torch.equal(result, expected) for result in results)


def test_the_peak_is_that_of_the_slots_and_of_one_boundary():
    frames, size = 21, 64
    tokens = frames * (size // 2) ** 2
    boundary = tokens * WIDTH * 2
    peaks = {}
    for name in ("resident", "streamed", "streamed, boundaries"):
        if name == "resident":
            model, stream = resident_model(sdpa_attention), None
        else:
            model, stream = streamed_model(sdpa_attention)
        boundaries = Boundaries(DEVICE) if name == "streamed, boundaries" else None
        enable_recompute(model.blocks, boundaries=boundaries)
        step(model, frames=frames, size=size)
        model.zero_grad()
        peaks[name] = peak(lambda model=model: step(model, frames=frames, size=size))
        unit = stream.device_bytes // 2 if stream is not None else 0
        del model, stream, boundaries
    logger.info("peaks in MiB: %s", {name: peak >> 20 for name, peak in peaks.items()})
    # All blocks but those in the two slots are gone; the allocator may round each piece up.
    assert peaks["streamed"] <= peaks["resident"] - (DEPTH - 2) * unit + (32 << 20)
    # Of the boundaries one is in use, one comes back ahead, one was just made.
    assert peaks["streamed, boundaries"] <= peaks["streamed"] - (DEPTH - 3) * boundary + (16 << 20)


def test_the_share_of_waiting_can_be_measured():
    model, stream = streamed_model(sdpa_attention)
    boundaries = Boundaries(DEVICE)
    enable_recompute(model.blocks, boundaries=boundaries)
    for _ in range(2):
        step(model, frames=21, size=64)
    stream.lane.timed = boundaries.lane.timed = True
    torch.cuda.synchronize()
    began = time.perf_counter()
    step(model, frames=21, size=64)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    waited = [lane.waited_seconds() for lane in (stream.lane, boundaries.lane)]
    logger.info("%.3f s a step; waited %.4f s for weights, %.4f s for boundaries", seconds, *waited)
    assert all(0 <= one <= seconds for one in waited)
    assert stream.lane.waited_seconds() == 0


def test_host_memory_is_page_locked_as_long_as_it_lives():
    memory = HostMemory(10_000_000, pinned=True)
    bytes_there = memory.bytes
    assert bytes_there.is_pinned()
    del memory
    gc.collect()
    assert not bytes_there.is_pinned()


def test_memory_that_cannot_be_locked_works_and_leaves_no_error_behind(caplog):
    host_memory._warn_pageable.cache_clear()
    memory = HostMemory(1 << 20, pinned=True)
    with caplog.at_level(logging.WARNING):
        # Locked already: CUDA refuses.
        assert not host_memory._page_lock(memory.bytes)
    assert "could not be page-locked" in caplog.text
    torch.ones(8, device=DEVICE).add_(1)
    torch.cuda.synchronize()


def test_streams_from_pageable_memory_are_right(monkeypatch):
    expected = step(resident_model())
    monkeypatch.setattr(host_memory, "_page_lock", lambda _pages: False)
    model, _ = streamed_model()
    enable_recompute(model.blocks, boundaries=Boundaries(DEVICE, at_least_bytes=0))
    for _ in range(3):
        assert worst(step(model), expected) < SAME


def test_running_out_of_memory_in_the_middle_leaves_all_usable(monkeypatch):
    expected = step(resident_model())
    model, stream = streamed_model()
    enable_recompute(model.blocks, boundaries=Boundaries(DEVICE, at_least_bytes=0))
    copied = stream.lane.copy
    for nth in (3, 7, 10):
        calls = iter(range(1, 1000))

        def failing(target: Tensor, source: Tensor, nth: int = nth, calls: Any = calls) -> Any:
            if next(calls) == nth:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return copied(target, source)

        with monkeypatch.context() as patch:
            patch.setattr(stream.lane, "copy", failing)
            with pytest.raises(torch.OutOfMemoryError):
                step(model)
        for _ in range(2):
            assert worst(step(model), expected) < SAME


def test_a_mapped_file_streams(tmp_path):
    expected = step(resident_model())
    model, _ = streamed_model(folder=tmp_path)
    enable_recompute(model.blocks)
    assert worst(step(model), expected) < SAME
