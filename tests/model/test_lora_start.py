"""Ranks and scales per layer, and adapters that start as one trained before."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora, load_lora, lora_alphas, lora_state
from longcat_tune.model.lora_start import require_start, start_lora_as
from longcat_tune.model.lora_targets import lora_alphas_of, lora_ranks, lora_target_modules

QKV = r"blocks\.\d+\.attn\.qkv"


def small() -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16)


def inputs() -> tuple[Tensor, ...]:
    generator = Generator().manual_seed(1)
    return (
        torch.randn(1, 4, 2, 4, 4, generator=generator),
        torch.tensor([900.0]),
        torch.randn(1, 6, 8, generator=generator),
    )


def trained(ranks: dict[str, int], alpha: float = 2.0) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights of an adapter that does something."""
    model, generator = small(), Generator().manual_seed(3)
    weights = {}
    for name, rank in ranks.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weights[f"{name}.lora_A.weight"] = 0.2 * torch.randn(rank, linear.in_features, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, rank, generator=generator)
    return weights, dict.fromkeys(ranks, alpha)


def test_the_first_expression_that_matches_gives_the_rank() -> None:
    targets = lora_target_modules(small(), "attention")
    ranks = lora_ranks(targets, 4, {r"blocks\.1\.attn\.qkv": 16, QKV: 8})
    assert ranks["blocks.0.attn.qkv"] == 8
    assert ranks["blocks.1.attn.qkv"] == 16
    assert list(ranks) == targets
    assert set(ranks.values()) == {4, 8, 16}
    model = small()
    alphas = lora_alphas_of(ranks, rank=4, alpha=2.0, use_rslora=False)
    add_lora(model, targets=targets, rank=ranks, alpha=alphas, generator=Generator().manual_seed(0))
    assert lora_state(model)["blocks.1.attn.qkv.lora_A.weight"].shape == (16, 32)
    assert model.get_submodule("blocks.1.attn.qkv").scaling == {"default": 0.5}


def test_an_expression_without_a_layer_is_refused() -> None:
    targets = lora_target_modules(small(), "attention")
    with pytest.raises(ConfigError, match=r"lora_rank_pattern \('attn.qkv'\) must .* nearest are blocks"):
        lora_ranks(targets, 4, {"attn.qkv": 8})


@pytest.mark.parametrize(("use_rslora", "scales"), [(False, (0.75, 0.75)), (True, (1.5, 0.75))])
def test_the_scale_is_the_runs_or_rank_stabilised(use_rslora: bool, scales: tuple[float, float]) -> None:
    ranks = {"few": 4, "many": 16}
    alphas = lora_alphas_of(ranks, rank=4, alpha=3.0, use_rslora=use_rslora)
    assert tuple(alphas[name] / rank for name, rank in ranks.items()) == scales


@pytest.mark.parametrize("rank", [3, 8])
def test_an_adapter_starts_as_another_of_smaller_rank_and_other_scale(rank: int) -> None:
    weights, alphas = trained({"blocks.0.attn.qkv": 3, "blocks.1.ffn.w2": 2})
    expected = small()
    load_lora(expected, weights, alphas)
    model = small()
    targets = lora_target_modules(model, "attention+ffn")
    add_lora(model, targets=targets, rank=rank, alpha=16.0, generator=Generator().manual_seed(2))
    fresh = lora_state(model)
    require_start(model, weights, dict.fromkeys(targets, rank))
    start_lora_as(model, weights, alphas)
    torch.testing.assert_close(model(*inputs()), expected(*inputs()), atol=3e-6, rtol=3e-6)
    assert (model(*inputs()) - small()(*inputs())).abs().max() > 0.05
    state = lora_state(model)
    assert set(lora_alphas(model).values()) == {16.0}
    # What the other does not fill is as it was drawn, so that it can learn.
    down = "blocks.1.ffn.w2.lora_A.weight"
    assert torch.equal(state[down][2:], fresh[down][2:])
    assert torch.equal(state["blocks.0.ffn.w1.lora_A.weight"], fresh["blocks.0.ffn.w1.lora_A.weight"])


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            {"blocks.0.ffn.w1": 2},
            r"adapts blocks\.0\.ffn\.w1 \(1 such layers\), .* set lora_target to attention\+ffn",
        ),
        ({"final_layer.linear": 2}, "set lora_target to all-linear"),
        ({"y_embedder.y_proj.0": 2}, "set lora_target to expressions that match it too"),
        (
            {"blocks.0.attn.qkv": 8, "blocks.1.attn.qkv": 8, "blocks.0.attn.proj": 8},
            r"rank of blocks\.0\.attn\.qkv is 8, but this run's is 4, .* set lora_rank to 8$",
        ),
        (
            {
                "blocks.0.attn.qkv": 12,
                "blocks.1.attn.qkv": 24,
                "blocks.0.attn.proj": 4,
                "blocks.1.attn.proj": 4,
                "blocks.0.cross_attn.proj": 4,
            },
            r'set lora_rank to 4 and lora_rank_pattern to \{"blocks\\\\.\\\\d\+\\\\.attn\\\\.qkv": 24\}$',
        ),
    ],
)
def test_what_cannot_be_started_as_is_refused_with_the_keys_to_set(
    ranks: dict[str, int], message: str
) -> None:
    weights, _ = trained(ranks)
    own = dict.fromkeys(lora_target_modules(small(), "attention"), 4)
    with torch.device("meta"):
        model = LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16)
    with pytest.raises(CheckpointError, match=message):
        require_start(model, weights, own)
