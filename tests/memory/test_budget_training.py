"""The plan's activations against those of the real model at its real size, counted without memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longcat_tune.memory.budget import Budget
from longcat_tune.memory.budget_renders import forward_terms
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_training import (
    WORKSPACE,
    AdapterSize,
    BatchSize,
    Placement,
    Training,
    boundary_terms,
    training_budget,
    weight_terms,
)
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.types import TEXT_TOKENS, Bucket
from tests.memory.counting import Counting, counting, materialize, released_model

DEPTH, RANK = 2, 16
FULL = Bucket(832, 480, 93)
SHORT = Bucket(576, 384, 81)


def training(bucket: Bucket, parameters: int, *, targets: str = "attention", **placement) -> Training:
    frames, height, width = bucket.latent_shape
    return Training(
        ModelShape(depth=DEPTH),
        "bf16",
        Placement(**placement),
        AdapterSize(parameters, "attention" in targets, "ffn" in targets, state_bytes=0, averaged=False),
        BatchSize(bucket.name, 1, bucket.num_tokens, 16 * frames * height * width),
        imports_bytes=0,
    )


def prediction(model: LongCatVideoTransformer, bucket: Bucket) -> torch.Tensor:
    frames, height, width = bucket.latent_shape
    with torch.autocast("cpu", torch.bfloat16):
        return model(
            torch.randn(1, 16, frames, height, width),
            torch.full((1, frames), 500.0),
            torch.randn(1, TEXT_TOKENS, 4096, dtype=torch.bfloat16),
            torch.ones(1, TEXT_TOKENS, dtype=torch.long),
        )


def counted_step(count: Counting, model: LongCatVideoTransformer, bucket: Bucket) -> int:
    """The peak of forward and backward, weights and gradients included."""
    count.restart()
    out = prediction(model, bucket)
    loss = (out - torch.randn_like(out)).square().mean()
    del out
    loss.backward()
    return count.peak


def device_bytes(budget: Budget) -> int:
    return budget.peak("device", reserve=False) - WORKSPACE


@pytest.mark.parametrize(
    ("bucket", "targets", "placement"),
    [
        (FULL, "attention", {}),
        (FULL, "attention", {"ffn_chunk_tokens": 8192}),
        (SHORT, "attention+ffn", {"ffn_chunk_tokens": 2048}),
        (SHORT, "attention+ffn", {}),
        (SHORT, r"blocks\.\d+\.ffn\.w[123]", {}),
        (SHORT, "attention", {"recompute_every": None}),
        (SHORT, "attention", {"recompute_every": 2}),
    ],
)
def test_the_predicted_peak_of_a_step_is_what_its_tensors_hold(bucket, targets, placement):
    model = released_model(DEPTH, targets=targets, rank=RANK)
    planned = training(bucket, 0, targets=targets, **placement)
    with counting() as count:
        materialize(model)
        if planned.placement.recompute_every is not None:
            enable_recompute(model.blocks, interval=planned.placement.recompute_every)
        model.ffn_chunk_tokens = planned.placement.ffn_chunk_tokens
        model.train()
        peak = counted_step(count, model, bucket)
    parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    adapter = replace(planned.adapter, parameters=parameters)
    assert device_bytes(training_budget(replace(planned, adapter=adapter))) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("chunk", [None, 2048])
def test_the_predicted_peak_of_a_render_is_what_its_tensors_hold(chunk):
    model = released_model(DEPTH)
    with counting() as count:
        materialize(model)
        model.ffn_chunk_tokens = chunk
        weights = count.restart()
        with torch.no_grad():
            prediction(model, SHORT)
        peak = count.peak - weights
    working = forward_terms(training(SHORT, 0, ffn_chunk_tokens=chunk))
    assert sum(term.num_bytes for term in working) == pytest.approx(peak, rel=0.1)


def test_the_weights_of_the_model_are_what_is_predicted():
    model = released_model(DEPTH, rank=RANK)
    own = sum(one.nbytes for one in model.parameters() if not one.requires_grad)
    shape = ModelShape(depth=DEPTH)
    terms = weight_terms(shape, "bf16", Placement())
    resident = [one for one in terms if one.name != "weights at work" and one.where == "device"]
    assert sum(term.num_bytes for term in resident) == own
    assert ModelShape().parameters == 13_581_071_424


def test_boundaries_in_host_memory_leave_two_on_the_device():
    step = training(FULL, 0, boundaries_on_host=True)
    step = replace(step, shape=ModelShape())
    inputs = {term.where: term.num_bytes for term in boundary_terms(step) if term.name == "inputs of blocks"}
    one = 2 * FULL.num_tokens * 4096
    assert inputs == {"device": 2 * one, "host": 48 * one}
