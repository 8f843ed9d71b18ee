"""Which linear layers a LoRA adapts, by name; knows no PEFT and reads no weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import nn

from longcat_tune.errors import ConfigError

ATTENTION = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj))"
FFN = r"blocks\.\d+\.ffn\.w[123]"
MODULATION = r"blocks\.\d+\.adaLN_modulation\.1"
FINAL = r"final_layer\.(linear|adaLN_modulation\.1)"

LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (ATTENTION,),
    "attention+ffn": (ATTENTION, FFN),
    "all-linear": (ATTENTION, FFN, MODULATION, FINAL),
}
"""What the names that `lora_target` takes stand for, as regexes of whole module names."""


def lora_target_modules(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Name the linear layers that a LoRA shall adapt, in the model's order.

    Args:
        model: may be on the meta device.
        targets: a key of LORA_TARGETS, or regexes that match whole module names.

    Raises:
        ConfigError: a regex is malformed or matches no linear layer.
    """
    if isinstance(targets, str):
        targets = LORA_TARGETS.get(targets, (targets,))
    names = list(linear_layers(model))
    chosen = {name for regex in targets for name in _matching(regex, names, model)}
    return [name for name in names if name in chosen]


def lora_ranks(targets: Sequence[str], rank: int, pattern: Mapping[str, int]) -> dict[str, int]:
    """Give every adapted layer its rank.

    Args:
        targets: names from `lora_target_modules`.
        rank: of those that no expression matches.
        pattern: ranks by regexes of whole module names; the first that matches counts.

    Raises:
        ConfigError: a regex matches none of the targets.
    """
    ranks = dict.fromkeys(targets, 0)
    for regex, own in pattern.items():
        matching = [name for name in targets if re.fullmatch(regex, name)]
        if not matching:
            msg = (
                f"lora_rank_pattern ({regex!r}) must match the whole name of at least one layer that "
                f"lora_target adapts and matches none; the nearest are {_nearest_to(regex, targets)}"
            )
            raise ConfigError(msg)
        ranks |= {name: ranks[name] or own for name in matching}
    return {name: own or rank for name, own in ranks.items()}


def lora_alphas_of(
    ranks: Mapping[str, int], *, rank: int, alpha: float, use_rslora: bool
) -> dict[str, float]:
    """Give every adapted layer the alpha that, divided by its own rank, is its scale.

    The scale is alpha / rank of the run for all of them, so that a layer of another rank is not stronger or
    weaker for it; rank-stabilised (Kalajdzievski, arXiv 2312.03732) it is alpha / sqrt(own rank).

    Args:
        ranks: from `lora_ranks`.
        rank: of the run.
        alpha: of the run.
        use_rslora: whether the scale is rank-stabilised.
    """
    if use_rslora:
        return {name: alpha * own**0.5 for name, own in ranks.items()}
    return {name: alpha * own / rank for name, own in ranks.items()}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of the base model by its own name, also where a LoRA wraps it already."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def nearest_names(wanted: str, names: Sequence[str]) -> str:
    """Up to three names that look most like the wanted one, for a message."""
    return ", ".join(difflib.get_close_matches(wanted, names, n=3, cutoff=0))


def _matching(regex: str, names: Sequence[str], model: nn.Module) -> list[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        msg = f"lora_target ({regex!r}) must be a regular expression: {error}"
        raise ConfigError(msg) from error
    matching = [name for name in names if pattern.fullmatch(name)]
    if not matching:
        other = [
            f" ({name} is a {type(m).__name__})"
            for name, m in model.named_modules()
            if pattern.fullmatch(name)
        ]
        msg = (
            f"lora_target ({regex!r}) must match the whole name of at least one linear layer and matches none"
            f"{''.join(other[:1])}; the nearest are {_nearest_to(regex, names)}"
        )
        raise ConfigError(msg)
    return matching


def _nearest_to(regex: str, names: Sequence[str]) -> str:
    return nearest_names(regex.replace("\\", ""), names)
