"""A fresh LoRA that starts as one trained before, whatever ranks and scales that had.

Knows no file: matrices come as `lora_state` gives them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.lora import check_modules, load_lora_state, lora_alphas, lora_state
from longcat_tune.model.lora_targets import LORA_TARGETS, lora_target_modules

logger = logging.getLogger(__name__)


def require_start(model: nn.Module, weights: Mapping[str, Tensor], ranks: Mapping[str, int]) -> None:
    """Refuse a LoRA that the run's adapter cannot start as.

    Args:
        model: the base; may be on the meta device.
        weights: what it shall start as.
        ranks: of the run's adapter, by module.

    Raises:
        CheckpointError: it was made for another model, adapts layers that the run does not, or has a larger
            rank.
    """
    modules = check_modules(model, weights)
    if outside := [name for name in modules if name not in ranks]:
        msg = (
            f"the LoRA adapts {outside[0]} ({len(outside)} such layers), which lora_target leaves out; "
            f"{_wider_target(model, modules)}"
        )
        raise CheckpointError(msg)
    large = {name: own for name in modules if (own := _rank(weights, name)) > ranks[name]}
    if large:
        name, own = next(iter(large.items()))
        msg = (
            f"the LoRA's rank of {name} is {own}, but this run's is {ranks[name]}, and a smaller one cannot "
            f"hold it; set {_rank_keys({name: _rank(weights, name) for name in modules})}"
        )
        raise CheckpointError(msg)


def start_lora_as(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    *,
    adapter: str = "default",
) -> None:
    """Let an adapter that `add_lora` has just made compute what another does.

    Ranks and scale stay the adapter's own: further ranks are as they were drawn and have no effect yet, and
    another scale is put into B. Layers that the other does not adapt start fresh.

    Args:
        model: has the adapter.
        weights: of the other LoRA, which `require_start` let pass; magnitudes are for `add_magnitudes`.
        alphas: of the other LoRA.
        adapter: the adapter's name.
    """
    state, own_alphas = lora_state(model, adapter=adapter), lora_alphas(model, adapter=adapter)
    for name, alpha in alphas.items():
        down, up = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        own_down, own_up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        rank, own_scale = down.shape[0], own_alphas[name] / own_down.shape[0]
        own_down[:rank] = down
        own_up[:, :rank] = up.to(torch.float32) * (alpha / rank / own_scale)
    load_lora_state(model, state, adapter=adapter)
    fresh = len(own_alphas) - len(alphas)
    logger.info("The adapter starts as a trained one in %d layers and fresh in %d", len(alphas), fresh)


def _rank(weights: Mapping[str, Tensor], module: str) -> int:
    return weights[f"{module}.lora_A.weight"].shape[0]


def _wider_target(model: nn.Module, modules: Sequence[str]) -> str:
    for name in LORA_TARGETS:
        if set(modules) <= set(lora_target_modules(model, name)):
            return f"set lora_target to {name}"
    return "set lora_target to expressions that match it too"


def _rank_keys(ranks: Mapping[str, int]) -> str:
    """The keys that give a run these ranks: the most frequent one, and a pattern per kind for the others."""
    values = list(ranks.values())
    usual = max(set(values), key=values.count)
    others: dict[str, int] = {}
    for name, own in ranks.items():
        if own != usual:
            kind = re.sub(r"^blocks\\\.\d+", r"blocks\\.\\d+", re.escape(name))
            others[kind] = max(own, others.get(kind, 0))
    keys = f"lora_rank to {usual}"
    if not others:
        return keys
    pattern = ", ".join(f'"{regex}": {own}' for regex, own in others.items()).replace("\\", "\\\\")
    return f"{keys} and lora_rank_pattern to {{{pattern}}}"
