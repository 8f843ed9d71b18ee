"""Renders as planned against the real model at its real size, without memory; LoRAs and refinement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from longcat_tune.memory.budget import Budget
from longcat_tune.memory.budget_parts import Picture, VaeSize
from longcat_tune.memory.budget_renders import (
    FRAME_BYTES,
    LentLora,
    Render,
    forward_terms,
    refinement_budget,
    render_budget,
)
from longcat_tune.memory.budget_training import BatchSize, Training
from longcat_tune.model.attention import math_attention
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.types import TEXT_TOKENS, Bucket
from tests.memory.counting import counting, materialize, released_model
from tests.memory.test_budget_training import DEPTH, SHORT, training

VAE = VaeSize(1000, base_width=96, element_bytes=2)
LORA = LentLora(5_000_000, in_ffn=True)


def prediction(model: LongCatVideoTransformer, bucket: Bucket, frames: int, **given: Any) -> Any:
    _, height, width = bucket.latent_shape
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        return model(
            torch.randn(1, 16, frames, height, width),
            torch.full((1, frames), 500.0),
            torch.randn(1, TEXT_TOKENS, 4096, dtype=torch.bfloat16),
            torch.ones(1, TEXT_TOKENS, dtype=torch.long),
            **given,
        )


def with_condition(step: Training, bucket: Bucket, *, given: int = 0, cached: int = 0) -> Training:
    batch, per_latent = step.batch, bucket.num_tokens // bucket.latent_shape[0]
    tokens = batch.tokens - cached * per_latent
    condition = {"given_tokens": given * per_latent, "cached_tokens": cached * per_latent}
    return replace(step, batch=replace(batch, tokens=tokens, **condition))


def predicted(step: Training) -> int:
    return sum(term.num_bytes for term in forward_terms(step))


@pytest.mark.parametrize(
    ("bucket", "cached"), [(SHORT, 4), (Bucket(832, 480, 29), 4), (Bucket(576, 384, 93), 18)]
)
def test_a_render_with_a_cache_takes_what_is_predicted(bucket: Bucket, cached: int) -> None:
    model = released_model(DEPTH)
    with counting() as count:
        materialize(model)
        before = count.restart()
        _, kept = prediction(model, bucket, cached, return_kv=True, skip_cross_attention=True)
        # Filling it is a moment of its own.
        filled = count.restart() - before
        frames = bucket.latent_shape[0] - cached
        prediction(model, bucket, frames, num_cond_latents=cached, kv_cache=kept)
        peak = count.peak - before
    step = with_condition(training(bucket, 0), bucket, cached=cached)
    [cache] = [term for term in forward_terms(step) if term.name == "cache of condition frames"]
    assert cache.num_bytes == pytest.approx(filled, rel=0.01)
    assert predicted(step) == pytest.approx(peak, rel=0.1)


def test_a_given_frame_and_written_out_scores_are_counted() -> None:
    bucket = Bucket(320, 192, 41)
    model = released_model(DEPTH)
    for block in model.blocks:
        block.attn.attend = math_attention
    with counting() as count:
        materialize(model)
        before = count.restart()
        prediction(model, bucket, bucket.latent_shape[0])
        peak = count.peak - before
    assert predicted(replace(training(bucket, 0), writes_scores=True)) == pytest.approx(peak, rel=0.1)

    model = released_model(DEPTH)
    with counting() as count:
        materialize(model)
        model.ffn_chunk_tokens = 2048
        before = count.restart()
        prediction(model, SHORT, SHORT.latent_shape[0], num_cond_latents=1)
        peak = count.peak - before
    step = with_condition(training(SHORT, 0, ffn_chunk_tokens=2048), SHORT, given=1)
    assert predicted(step) == pytest.approx(peak, rel=0.05)


def test_a_lora_on_the_feed_forward_takes_one_wide_tensor_more() -> None:
    model = released_model(DEPTH, targets="attention+ffn")
    with counting() as count:
        materialize(model)
        before = count.restart()
        prediction(model, SHORT, SHORT.latent_shape[0])
        peak = count.peak - before
    assert predicted(training(SHORT, 0, targets="attention+ffn")) == pytest.approx(peak, rel=0.05)


def render(bucket: Bucket, *, frames: int | None = None, lora: LentLora = LORA) -> Render:
    batch: BatchSize = training(bucket, 0).batch
    picture = Picture(bucket.name, bucket.width, bucket.height, bucket.num_frames)
    return Render(batch, picture, frames or bucket.num_frames, lora)


def of(budget: Budget, moment: str, term: str) -> list[tuple[str, int]]:
    [found] = [one for one in budget.moments if one.name.startswith(moment)]
    return [(one.where, one.num_bytes) for one in found.terms if one.name == term]


@pytest.mark.parametrize("in_training", [True, False])
def test_loras_of_renders_rest_in_host_memory_and_work_on_the_device(in_training: bool) -> None:
    other = 7_000_000
    run = replace(training(SHORT, 0), resting_bytes=LORA.num_bytes + other)
    budget = render_budget(run, render(SHORT), VAE, in_training=in_training)
    assert of(budget, "denoising", "LoRA that is lent") == [("device", 10_000_000)]
    assert of(budget, "denoising", "LoRAs of renders") == [("host", other)]
    assert of(budget, "decoding", "LoRA that is lent") == []
    assert of(budget, "decoding", "LoRAs of renders") == [("host", LORA.num_bytes + other)]
    assert of(budget, "attaching", "LoRA that is attached") == [("device", 20_000_000)]


def test_a_lora_on_the_feed_forward_widens_the_render_it_works_in() -> None:
    def at_work(lora: LentLora) -> int:
        budget = render_budget(training(SHORT, 0), render(SHORT, lora=lora), VAE, in_training=False)
        return of(budget, "denoising", "a block at work")[0][1]

    assert at_work(LORA) > at_work(replace(LORA, in_ffn=False))


def test_a_long_video_is_in_host_memory_twice_while_a_segment_joins_it() -> None:
    alone, long = (
        render_budget(training(SHORT, 0), render(SHORT, frames=frames), VAE, in_training=False)
        for frames in (None, 200)
    )
    assert of(alone, "decoding", "video so far") == [("host", 0)]
    assert of(long, "decoding", "video so far") == [("host", 2 * 3 * 576 * 384 * 200)]


def test_a_refinement_encodes_cleans_and_decodes_the_enlarged_video() -> None:
    large = render(Bucket(1280, 704, 189))
    run = replace(training(SHORT, 0), attended_share=1 / 16, resting_bytes=LORA.num_bytes)
    budget = refinement_budget(run, large, VAE, in_training=False)
    one = 3 * 4 * 1280 * 704 * 189
    assert of(budget, "refining, encoding", "enlarged video") == [("host", 4 * one)]
    assert of(budget, "refining, decoding", "enlarged video") == [("host", 2 * one)]
    assert of(budget, "refining, decoding", "decoded frames") == [("host", FRAME_BYTES * 1280 * 704 * 189)]
    assert of(budget, "refining, 1280", "LoRA that is lent") == [("device", LORA.num_bytes)]
    # 2,640 blocks of queries, of whose key blocks each head keeps 165.
    assert of(budget, "refining, 1280", "lists of key blocks") == [("device", 4 * 32 * 2640 * 165)]
    assert of(budget, "refining, 1280", "a block at work")[0][1] > 11 * 2 * 168_960 * 4096
