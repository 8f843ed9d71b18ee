"""What a PEFT LoRA says of itself beside its matrices: alpha per module, in three places that readers know.

Sources: huggingface/peft, src/peft/tuners/lora/config.py and src/peft/utils/other.py (how a pattern is
matched); huggingface/diffusers, src/diffusers/loaders/lora_base.py (the metadata key).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longcat_tune.checkpoint.key_maps import PEFT_PREFIX
from longcat_tune.errors import CheckpointError

OWN_KEY = "alpha"
DIFFUSERS_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"


def stated_alpha(path: Path, metadata: Mapping[str, str]) -> Callable[[str, int], float | None]:
    """Find who states alpha, by module and rank: our metadata, diffusers' or the config PEFT puts beside.

    Args:
        path: of the LoRA file.
        metadata: of the same file.

    Returns:
        A function that gives None for a module of which nothing is stated.

    Raises:
        CheckpointError: what states it cannot be read.
    """
    if OWN_KEY in metadata:
        ours = _parsed(path, metadata[OWN_KEY])
        return lambda name, _: ours.get(name) if isinstance(ours, dict) else ours
    beside = path.with_name(CONFIG_FILE)
    if DIFFUSERS_KEY in metadata:
        config = _parsed(path, metadata[DIFFUSERS_KEY])
        config = {key.removeprefix(PEFT_PREFIX): value for key, value in config.items()}
    elif beside.is_file():
        config = _parsed(beside, beside.read_text(encoding="utf-8"))
    else:
        return lambda *_: None
    return lambda name, rank: _peft_alpha(config, name, rank)


def adapter_metadata(ranks: Mapping[str, int], alphas: Mapping[str, float], *, dora: bool) -> str:
    """Make the JSON from which diffusers and PEFT build a LoraConfig that fits the file.

    Without it they take alpha for the rank.

    Args:
        ranks: per module, by its own name.
        alphas: per module.
        dora: whether the file holds magnitudes.
    """
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": dora,
        "use_rslora": False,
    }
    return json.dumps({PEFT_PREFIX + key: value for key, value in config.items()}, sort_keys=True)


def _patterns(values: Mapping[str, float], default: float) -> dict[str, float]:
    """One regex per other value: PEFT compares every module with every regex."""
    others: dict[float, list[str]] = {}
    for name, value in values.items():
        if value != default:
            others.setdefault(value, []).append(re.escape(name))
    return {"|".join(names): value for value, names in others.items()}


def _peft_alpha(config: Mapping[str, Any], module: str, rank: int) -> float | None:
    """Follow PEFT: the first pattern that ends the name wins; rank-stabilised scale is alpha / sqrt(rank)."""
    patterns = config.get("alpha_pattern") or {}
    matching = (alpha for regex, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({regex})", module))
    alpha = next(matching, config.get("lora_alpha"))
    if alpha is None:
        return None
    return float(alpha * rank**0.5 if config.get("use_rslora") else alpha)


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        msg = f"{path}: what it says of alpha is not JSON ({error}); fetch or write the file again"
        raise CheckpointError(msg) from error
