"""DoRA on the transformer: starts as nothing, computes what PEFT's own does, merges as it runs."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Generator, Tensor, nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import (
    add_lora,
    add_magnitudes,
    load_lora,
    load_lora_state,
    lora_alphas,
    lora_disabled,
    lora_state,
    magnitudes_in,
    set_lora_scale,
)
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.model.merge import merged_weight, weight_change

RANK, ALPHA = 3, 6.0


def small(dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16).to(dtype)


def inputs() -> tuple[Tensor, ...]:
    generator = Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 3, 4, 4, generator=generator),
        torch.tensor([900.0, 300.0]),
        torch.randn(2, 6, 8, generator=generator),
    )


def with_dora(
    model: LongCatVideoTransformer, targets: str = "all-linear", *, moved: bool = True, **changes: object
) -> LongCatVideoTransformer:
    """A model whose DoRA does something, unless it is not moved from its start."""
    fields = {"rank": RANK, "alpha": ALPHA, "generator": Generator().manual_seed(2)} | changes
    add_lora(model, targets=lora_target_modules(model, targets), **fields)
    add_magnitudes(model)
    if moved:
        load_lora_state(model, moved_state(model))
    return model


def moved_state(model: nn.Module) -> dict[str, Tensor]:
    generator = Generator().manual_seed(3)
    return {
        key: weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
        if "lora_B" not in key
        else 0.2 * torch.randn(weight.shape, generator=generator)
        for key, weight in lora_state(model).items()
    }


def merged(
    model: LongCatVideoTransformer, state: dict[str, Tensor], strength: float
) -> LongCatVideoTransformer:
    magnitudes = magnitudes_in(state)
    for name, module in model.named_modules():
        if f"{name}.lora_A.weight" in state:
            assert isinstance(module, nn.Linear)
            down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            change = weight_change(
                module.weight, down, up, ALPHA / RANK, magnitude=magnitudes.get(name), strength=strength
            )
            module.weight.data = merged_weight(module.weight, [change]).data
    return model


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_dora_changes_nothing_at_all(dtype: torch.dtype, autocast: bool) -> None:
    model = small(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = model(*inputs())
        after = with_dora(model, moved=False, autocast=autocast)(*inputs())
    assert torch.equal(after, before)


def test_pefts_own_dora_gives_the_same_numbers_and_gradients() -> None:
    ours, theirs = with_dora(small()), small()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=lora_target_modules(theirs, "all-linear")
    )
    theirs = inject_adapter_in_model(config, theirs)
    assert set_peft_model_state_dict(theirs, lora_state(ours)).unexpected_keys == []
    outputs = [model(*inputs()) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-4)
    assert (outputs[0] - small()(*inputs())).abs().max() > 0.05
    for output in outputs:
        output.square().mean().backward()
    gradients = [
        {name: weight.grad for name, weight in model.named_parameters() if ".lora_" in name}
        for model in (ours, theirs)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=2e-3, msg=name)


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.0])
def test_merged_is_run_time_at_every_strength(strength: float) -> None:
    model = with_dora(small())
    state = lora_state(model)
    set_lora_scale(model, strength)
    expected = model(*inputs())
    torch.testing.assert_close(merged(small(), state, strength)(*inputs()), expected, atol=3e-6, rtol=3e-6)
    if not strength:
        assert torch.equal(expected, small()(*inputs()))


def test_state_goes_out_and_in_with_magnitudes() -> None:
    first = with_dora(small())
    state = lora_state(first)
    assert len(state) == 3 * len(lora_alphas(first))
    second = small()
    load_lora(second, state, lora_alphas(first), trainable=True)
    assert torch.equal(second(*inputs()), first(*inputs()))
    assert all(torch.equal(weight, state[key]) for key, weight in lora_state(second).items())
    trained = [name for name, weight in second.named_parameters() if weight.requires_grad]
    assert len(trained) == len(state)
    with lora_disabled(second):
        assert torch.equal(second(*inputs()), small()(*inputs()))
    assert [name for name, weight in second.named_parameters() if weight.requires_grad] == trained


def test_a_frozen_dora_and_a_trained_lora_add_up() -> None:
    names = ("blocks.0.attn.qkv", "blocks.1.ffn.w2")
    dora, plain = with_dora(small(), "|".join(names)), small()
    add_lora(plain, targets=names, rank=2, alpha=2.0, generator=Generator().manual_seed(5))
    load_lora_state(plain, moved_state(plain))
    for first, second in ((dora, plain), (plain, dora)):
        model = small()
        load_lora(model, lora_state(first), lora_alphas(first), adapter="first")
        load_lora(model, lora_state(second), lora_alphas(second), adapter="second", trainable=True)
        for name in names:
            layer, alone = model.get_submodule(name), small().get_submodule(name)
            assert isinstance(alone, nn.Linear)
            x = torch.randn(4, alone.in_features, generator=Generator().manual_seed(6))
            both = sum(one.get_submodule(name)(x) - alone(x) for one in (dora, plain))
            torch.testing.assert_close(layer(x), alone(x) + both, atol=3e-6, rtol=3e-6)
        assert {
            n.split(".lora_")[1].split(".")[1] for n, p in model.named_parameters() if p.requires_grad
        } == {"second"}


def test_bf16_under_autocast_stays_near_float32() -> None:
    exact = with_dora(small())
    rough = with_dora(small(torch.bfloat16), moved=False, autocast=True)
    load_lora_state(rough, lora_state(exact))
    with torch.autocast("cpu", torch.bfloat16):
        got = rough(*inputs())
        with lora_disabled(rough):
            base_error = (rough(*inputs()) - small()(*inputs())).square().mean().sqrt()
    assert got.dtype == torch.float32
    assert (got - exact(*inputs())).square().mean().sqrt() < 3 * base_error


def test_dropout_acts_on_the_adapter_and_only_in_training() -> None:
    model = with_dora(small(), dropout=0.5)
    assert not torch.equal(model.train()(*inputs()), model(*inputs()))
    assert torch.equal(model.eval()(*inputs()), with_dora(small())(*inputs()))
    fresh = with_dora(small(), dropout=0.5, moved=False).train()
    assert torch.equal(fresh(*inputs()), small()(*inputs()))


def test_a_lora_becomes_a_dora_without_a_jump() -> None:
    model = small()
    add_lora(
        model,
        targets=lora_target_modules(model, "all-linear"),
        rank=RANK,
        alpha=ALPHA,
        generator=Generator().manual_seed(2),
    )
    load_lora_state(model, moved_state(model))
    before = model(*inputs())
    add_magnitudes(model)
    torch.testing.assert_close(model(*inputs()), before, atol=3e-6, rtol=3e-6)
    assert (before - small()(*inputs())).abs().max() > 0.05


def test_a_layer_of_zeros_makes_no_nan() -> None:
    model = small()
    nn.init.zeros_(model.final_layer.linear.weight)
    assert torch.isfinite(with_dora(model, moved=False)(*inputs())).all()


def test_a_dora_with_a_magnitude_missing_is_refused() -> None:
    model = with_dora(small())
    state = lora_state(model)
    state.pop("blocks.1.ffn.w3.lora_magnitude_vector")
    with pytest.raises(CheckpointError, match=r"has magnitudes, but none for blocks\.1\.ffn\.w3"):
        load_lora(small(), state, lora_alphas(model))
    with pytest.raises(CheckpointError, match="same lora_target and use_dora"):
        load_lora_state(model, state)
