"""LoRA on the transformer: right modules, right numbers in every precision, base untouched, PEFT agrees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from longcat_tune.checkpoint.lora_file import LoraWeights, read_lora, write_lora
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import (
    add_lora,
    load_lora,
    load_lora_state,
    lora_alphas,
    lora_disabled,
    lora_lent,
    lora_state,
    rest_lora,
    set_lora_scale,
)
from longcat_tune.model.lora_targets import lora_target_modules
from tests.golden.cases import FOLDER, Case, parametrize


def small(dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16).to(dtype)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    text = torch.randn(2, 6, 8, generator=generator)
    return latents, torch.tensor([900.0, 300.0]), text, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])


def with_lora(
    model: LongCatVideoTransformer, targets: str = "all-linear", **changes: object
) -> LongCatVideoTransformer:
    """A model whose LoRA does something: B is not zero."""
    fields = {"rank": 3, "alpha": 6.0, "generator": Generator().manual_seed(2)} | changes
    add_lora(model, targets=lora_target_modules(model, targets), **fields)
    fill(model)
    return model


def fill(model: nn.Module, adapter: str = "default") -> None:
    state = lora_state(model, adapter=adapter)
    generator = Generator().manual_seed(3)
    for key in state:
        if "lora_B" in key:
            state[key] = 0.2 * torch.randn(state[key].shape, generator=generator)
    load_lora_state(model, state, adapter=adapter)


def full_model() -> LongCatVideoTransformer:
    with torch.device("meta"):
        return LongCatVideoTransformer()


@parametrize("lora")
def test_an_official_file_gives_the_official_numbers(case: Case) -> None:
    model, expected = case.model(), case.tensors()
    lora = read_lora(FOLDER / case.call["lora_file"])
    load_lora(model, lora.weights, lora.alphas)
    case.check(case.predict(model), expected["out.mult_1.0"], "out.mult_1.0")
    set_lora_scale(model, 0.6)
    case.check(case.predict(model), expected["out.mult_0.6"], "out.mult_0.6")
    with lora_disabled(model):
        case.check(case.predict(model), expected["out.base"], "out.base")


@parametrize("lora_two")
def test_two_official_files_add_up(case: Case) -> None:
    model = case.model()
    for number, (file, multiplier, _) in enumerate(case.call["loras"]):
        lora = read_lora(FOLDER / file)
        load_lora(model, lora.weights, lora.alphas, adapter=f"lora{number}")
        set_lora_scale(model, multiplier, adapter=f"lora{number}")
    case.check(case.predict(model), case.tensors()["out.sample"], "out.sample")


@pytest.mark.parametrize(
    ("targets", "count"), [("attention", 240), ("attention+ffn", 384), ("all-linear", 434)]
)
def test_presets_name_the_modules_of_the_full_model(targets: str, count: int) -> None:
    names = lora_target_modules(full_model(), targets)
    assert len(names) == len(set(names)) == count
    assert "x_embedder.proj" not in names


def test_the_attention_preset_is_the_five_linears_of_each_block() -> None:
    expected = [
        f"blocks.{block}.{name}"
        for block in range(48)
        for name in (
            "attn.qkv",
            "attn.proj",
            "cross_attn.q_linear",
            "cross_attn.kv_linear",
            "cross_attn.proj",
        )
    ]
    assert sorted(lora_target_modules(full_model(), "attention")) == sorted(expected)


def test_regexes_match_whole_names_and_are_the_same_on_an_adapted_model() -> None:
    model = small()
    regexes = [r"blocks\.1\.ffn\.w2", r"y_embedder.*"]
    before = lora_target_modules(model, regexes)
    assert before == ["y_embedder.y_proj.0", "y_embedder.y_proj.2", "blocks.1.ffn.w2"]
    with_lora(model)
    assert lora_target_modules(model, regexes) == before


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (
            "attn.qvk",
            r"^lora_target \('attn.qvk'\) must match .* matches none; the nearest are blocks\.\d\.attn\.qkv",
        ),
        (r"x_embedder\.proj", r"matches none \(x_embedder\.proj is a Conv3d\); the nearest are"),
        ("blocks.(", r"lora_target \('blocks\.\('\) must be a regular expression"),
    ],
)
def test_a_regex_without_a_linear_layer_is_refused(regex: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_target_modules(small(), ["blocks.0.attn.proj", regex])


def test_a_new_lora_changes_nothing_and_only_it_trains() -> None:
    model = small()
    before = model(*inputs())
    names = lora_target_modules(model, "all-linear")
    add_lora(model, targets=names, rank=3, alpha=6, generator=Generator().manual_seed(2))
    assert type(model) is LongCatVideoTransformer
    assert torch.equal(model(*inputs()), before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(names)
    assert all(".lora_" in name for name in trained)
    assert all(torch.isfinite(weight).all() for weight in lora_state(model).values())


def test_a_follows_from_the_generator_and_not_from_global_state() -> None:
    torch.manual_seed(11)
    model = with_lora(small(torch.bfloat16))
    after = torch.randn(1)
    state = lora_state(model)
    torch.manual_seed(12)
    again = lora_state(with_lora(small()))
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert all(weight.dtype == torch.float32 for weight in state.values())
    down = state["blocks.0.ffn.w2.lora_A.weight"]
    assert 0.9 / 256**0.5 < down.abs().max() <= 1 / 256**0.5
    torch.manual_seed(0)  # `small` seeds; injecting must not draw.
    LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16)
    assert torch.equal(after, torch.randn(1))


def test_the_update_is_alpha_over_rank_times_b_times_a() -> None:
    model, merged = with_lora(small()), small()
    state = lora_state(model)
    for name, module in merged.named_modules():
        if f"{name}.lora_A.weight" in state:
            update = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            module.weight.data += 6.0 / 3 * update
    assert (model(*inputs()) - small()(*inputs())).abs().max() > 0.1
    torch.testing.assert_close(model(*inputs()), merged(*inputs()), atol=2e-5, rtol=1e-4)
    assert set(lora_alphas(model).values()) == {6.0}


def test_every_lora_weight_gets_a_gradient_and_the_base_none() -> None:
    model = with_lora(small())
    model(*inputs()).square().mean().backward()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@parametrize("lora")
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_stays_near_float32_with_and_without_autocast(case: Case, autocast: bool) -> None:
    model, expected = case.model(torch.bfloat16), case.tensors()
    lora = read_lora(FOLDER / case.call["lora_file"])
    load_lora(model, lora.weights, lora.alphas, autocast=autocast)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = case.predict(model)
        with lora_disabled(model):
            base = case.predict(model)
    # The official bf16 model is off by as much without any LoRA (bf16_* golden cases).
    base_rms = (base - expected["out.base"]).square().mean().sqrt()
    rms = (got - expected["out.mult_1.0"]).square().mean().sqrt()
    assert got.dtype == torch.float32
    assert rms < 2 * base_rms < 0.1


def test_under_autocast_no_float32_copy_of_the_inputs_is_made() -> None:
    seen: dict[bool, set[torch.dtype]] = {}
    for autocast in (False, True):
        model = with_lora(small(torch.bfloat16), "attention+ffn", autocast=autocast)
        seen[autocast] = dtypes = set()
        for name, module in model.named_modules():
            if name.endswith(".lora_A.default"):
                module.register_forward_pre_hook(lambda _, args, dtypes=dtypes: dtypes.add(args[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(*inputs())
    assert seen == {False: {torch.float32}, True: {torch.bfloat16}}


def test_gradients_agree_with_float32_under_autocast() -> None:
    def gradients(dtype: torch.dtype, autocast: bool) -> Tensor:
        model = with_lora(small(dtype), autocast=autocast)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(*inputs())
        (output - inputs()[0]).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients(torch.float32, autocast=False)
    for autocast in (False, True):
        got = gradients(torch.bfloat16, autocast)
        assert got.dtype == torch.float32
        assert nn.functional.cosine_similarity(got, exact, dim=0) > 0.995


def test_dropout_acts_in_training_only() -> None:
    model = with_lora(small(), dropout=0.5)
    assert not torch.equal(model.train()(*inputs()), model(*inputs()))
    assert torch.equal(model.eval()(*inputs()), model(*inputs()))


def test_disabling_gives_the_base_and_brings_back_what_was_trained() -> None:
    base = small()(*inputs())
    model = with_lora(small())
    adapted = model(*inputs())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with lora_disabled(model):
        assert torch.equal(model(*inputs()), base)
    assert torch.equal(model(*inputs()), adapted)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_a_frozen_lora_under_a_trained_one_stays_frozen() -> None:
    model = small()
    first = with_lora(small())
    load_lora(model, lora_state(first), lora_alphas(first), adapter="style")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with_lora(model, "attention")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    with lora_disabled(model):
        pass
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    both = model(*inputs())
    set_lora_scale(model, 0.0)
    torch.testing.assert_close(model(*inputs()), first(*inputs()))
    assert not torch.allclose(both, first(*inputs()))


def test_loras_added_later_leave_the_trained_one_trained() -> None:
    model, second = with_lora(small(), "attention"), with_lora(small())
    load_lora(model, lora_state(second), lora_alphas(second), adapter="frozen")
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    load_lora(model, lora_state(second), lora_alphas(second), adapter="other", trainable=True)
    names = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"default", "other"}


def test_a_loaded_lora_keeps_its_own_rank_and_scale_per_module() -> None:
    model, generator = small(), Generator().manual_seed(5)
    ranks = {"blocks.0.attn.qkv": 2, "blocks.1.attn.qkv": 5, "final_layer.linear": 2}
    alphas = {"blocks.0.attn.qkv": 1.0, "blocks.1.attn.qkv": 2.5, "final_layer.linear": 3.0}
    weights, merged = {}, small()
    for name, rank in ranks.items():
        linear = merged.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        down = torch.randn(rank, linear.in_features, generator=generator) * 0.1
        up = torch.randn(linear.out_features, rank, generator=generator)
        weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        linear.weight.data += alphas[name] / rank * up @ down
    load_lora(model, weights, alphas)
    torch.testing.assert_close(model(*inputs()), merged(*inputs()), atol=2e-5, rtol=1e-4)
    assert lora_alphas(model) == alphas
    assert lora_state(model).keys() == weights.keys()


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): weight for key, weight in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: renamed(state, "blocks.1.attn", "blocks.7.attn"),
            r"the LoRA adapts blocks\.7\.attn\.qkv, which is no linear layer of this model \(nearest: blocks",
        ),
        (
            lambda state: {key: weight.repeat(2, 2) for key, weight in state.items()},
            r"takes 64 and gives 192 values, but this model's takes 32 and gives 96; it was made for another",
        ),
    ],
)
def test_a_lora_of_another_model_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    state = change(lora_state(with_lora(small(), r"blocks\.\d\.attn\.qkv")))
    alphas = {key.rsplit(".lora_", 1)[0]: 1.0 for key in state}
    with pytest.raises(CheckpointError, match=message):
        load_lora(small(), state, alphas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: dict(list(state.items())[1:]), "is missing from the file \\(1 such in all\\)"),
        (lambda state: {**state, "head.lora_A.weight": torch.zeros(1)}, "is not part of this run's LoRA"),
        (lambda state: {key: weight[:2] for key, weight in state.items()}, "use the same lora_rank"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    model = with_lora(small())
    before = lora_state(model)
    with pytest.raises(CheckpointError, match=message):
        load_lora_state(model, change({key: torch.zeros_like(weight) for key, weight in before.items()}))
    assert all(torch.equal(weight, before[key]) for key, weight in lora_state(model).items())


def test_pefts_own_loader_reads_our_file_and_computes_the_same(tmp_path: Path) -> None:
    model = with_lora(small(), "attention")
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write_lora(path, LoraWeights(lora_state(model), lora_alphas(model), {"targets": "attention"}))
    stored = {key.removeprefix("transformer."): weight for key, weight in load_file(path).items()}
    fresh = small()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=lora_target_modules(fresh, "attention"))
    result = set_peft_model_state_dict(inject_adapter_in_model(config, fresh), stored)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if ".lora_" in key]
    assert torch.equal(fresh(*inputs()), model(*inputs()))
    assert not torch.equal(fresh(*inputs()), small()(*inputs()))


def test_the_full_model_is_adapted_on_the_meta_device_within_seconds() -> None:
    model = full_model()
    names = lora_target_modules(model, "attention")
    add_lora(model, targets=names, rank=8, alpha=8, generator=Generator().manual_seed(0))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    inputs_and_outputs = (4096 + 12288) + (4096 + 8192) + 3 * (4096 + 4096)
    assert trained == 8 * 48 * inputs_and_outputs == 20_447_232


def test_weights_cross_as_copies() -> None:
    model = with_lora(small())
    state = lora_state(model)
    key = next(iter(state))
    state[key].zero_()
    assert lora_state(model)[key].abs().max() > 0


def test_a_resting_lora_changes_nothing_and_a_lent_one_adds_its_update() -> None:
    model, given = with_lora(small(), "attention").eval(), inputs()
    before = model(*given)
    other = small()
    add_lora(
        other,
        targets=lora_target_modules(other, "attention+ffn"),
        rank=2,
        alpha=4.0,
        generator=Generator().manual_seed(9),
    )
    fill(other)
    load_lora(model, lora_state(other), lora_alphas(other), adapter="render")
    both = model(*given)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    rest_lora(model, adapter="render", dtype=torch.float32)
    assert torch.equal(model(*given), before)
    with lora_lent(model, adapter="render", device=torch.device("cpu")):
        assert torch.equal(model(*given), both)
        assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained
    assert torch.equal(model(*given), before)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained
    assert len(trained) == len(lora_state(model)) > 0


def test_a_resting_lora_takes_no_part_in_training() -> None:
    plain, rested = with_lora(small()), with_lora(small())
    load_lora(rested, lora_state(plain), lora_alphas(plain), adapter="render")
    rest_lora(rested, adapter="render", dtype=torch.bfloat16)
    gradients = []
    for model in (plain, rested):
        model(*inputs()).square().mean().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
