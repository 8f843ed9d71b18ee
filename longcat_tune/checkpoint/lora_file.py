"""LoRA files: ours is written, PEFT's and Meituan's are read, into one form that the model's LoRA takes.

Knows names, matrices and scales; never a model.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longcat_tune.checkpoint.key_maps import (
    EXPECTED,
    WRITTEN_PREFIX,
    PartName,
    is_official,
    official_name,
    peft_name,
    written_key,
)
from longcat_tune.errors import CheckpointError
from longcat_tune.files import write_tensors_atomically

logger = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
FORMAT = "1"
Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A LoRA by itself: the update of a module is alpha / rank * B @ A.

    Attributes:
        weights: `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank] of every module.
        alphas: per module.
        metadata: what the file says about itself.
    """

    weights: dict[str, Tensor]
    alphas: dict[str, float]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank per module."""
        return {name: self.weights[f"{name}.lora_A.weight"].shape[0] for name in self.alphas}


def write_lora(path: Path, lora: LoraWeights) -> None:
    """Write a PEFT-named file whose metadata also holds rank, alpha and format.

    Args:
        path: created or replaced in one step.
        lora: its metadata tells what the caller knows: targets, base model, step.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    metadata = {
        **lora.metadata,
        # `format` is safetensors' own: loaders of other libraries refuse anything but pt there.
        "format": "pt",
        "longcat_tune_format": FORMAT,
        "rank": _uniform_json(lora.ranks),
        "alpha": _uniform_json(lora.alphas),
    }
    write_tensors_atomically(
        path, {written_key(key): weight for key, weight in lora.weights.items()}, metadata
    )


def read_lora(path: Path) -> LoraWeights:
    """Read a LoRA of any known format; an official one's separate chunks become one block-diagonal matrix.

    Args:
        path: a safetensors file, or a folder that holds `pytorch_lora_weights.safetensors`.

    Raises:
        CheckpointError: the file is missing, damaged, incomplete or of a format that is not known.
    """
    path = path / LORA_FILE if path.is_dir() else path
    tensors, metadata = _read(path)
    if any(is_official(key) for key in tensors):
        return _from_official(path, _by_module(path, tensors, official_name), metadata)
    return _from_peft(path, _by_module(path, tensors, peft_name), metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        msg = f"LoRA file {path} {reason}; give a complete safetensors file"
        raise CheckpointError(msg) from error


def _by_module(path: Path, tensors: Mapping[str, Tensor], split: Callable[[str], PartName | None]) -> Parts:
    modules: Parts = {}
    for key, tensor in tensors.items():
        name = split(key)
        if name is None:
            msg = f"LoRA file {path} holds {key}, which is not known here; expected keys like {EXPECTED}"
            raise CheckpointError(msg)
        modules.setdefault(name.module, {})[name.part] = tensor
    if not modules:
        msg = f"LoRA file {path} is empty; expected keys like {EXPECTED}"
        raise CheckpointError(msg)
    return modules


def _from_peft(path: Path, modules: Parts, metadata: dict[str, str]) -> LoraWeights:
    stated = _stated_alpha(path, metadata)
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unscaled = 0
    for name, parts in modules.items():
        down, up = _required(path, name, parts, "lora_A", "lora_B")
        _check_shapes(path, name, down, [up])
        weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        alpha = parts["alpha"].item() if "alpha" in parts else stated(name, down.shape[0])
        unscaled += alpha is None
        alphas[name] = float(down.shape[0] if alpha is None else alpha)
    if unscaled:
        logger.info("%s states no alpha for %d modules: alpha = rank is assumed", path, unscaled)
    return LoraWeights(weights, alphas, metadata)


def _from_official(path: Path, modules: Parts, metadata: dict[str, str]) -> LoraWeights:
    """Source of the maths: longcat_video/modules/lora_utils.py; n chunks of the output share no rank."""
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, parts in modules.items():
        scale, down = _required(path, name, parts, "alpha_scale", "lora_down.weight")
        chunks = sum(part.startswith("lora_up.blocks.") for part in parts)
        up_names = [f"lora_up.blocks.{j}.weight" for j in range(chunks)] or ["lora_up.weight"]
        ups = _required(path, name, parts, *up_names)
        _check_shapes(path, name, down, ups)
        weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": torch.block_diag(*ups)}
        alphas[name] = scale.item() * down.shape[0]
    return LoraWeights(weights, alphas, metadata)


def _required(path: Path, module: str, parts: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in parts]
    if missing:
        msg = (
            f"LoRA file {path} is incomplete: {module} has {', '.join(parts)} but no {', '.join(missing)}; "
            "fetch or write the file again"
        )
        raise CheckpointError(msg)
    return [parts[name] for name in names]


def _check_shapes(path: Path, module: str, down: Tensor, ups: list[Tensor]) -> None:
    shapes = [tuple(tensor.shape) for tensor in (down, *ups)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != sum(shape[1] for shape in shapes[1:]):
        msg = (
            f"LoRA file {path}: the matrices of {module} have shapes {', '.join(map(str, shapes))}, but the "
            "first must have as many rows as the others have columns; only plain LoRA on linear layers is "
            "known here"
        )
        raise CheckpointError(msg)


def _stated_alpha(path: Path, metadata: Mapping[str, str]) -> Callable[[str, int], float | None]:
    """Find who states alpha, by module and rank: our metadata, diffusers' or the config PEFT puts beside."""
    if "alpha" in metadata:
        ours: Any = json.loads(metadata["alpha"])
        return lambda name, rank: ours[name] if isinstance(ours, dict) else ours
    config_file = path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in metadata:
        config = json.loads(metadata["lora_adapter_metadata"])
        config = {key.removeprefix(WRITTEN_PREFIX): value for key, value in config.items()}
    elif config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
    else:
        return lambda name, rank: None
    return lambda name, rank: _peft_alpha(config, name, rank)


def _peft_alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Follow PEFT: the first pattern that ends the name wins; rank-stabilised scale is alpha / sqrt(rank)."""
    patterns = config.get("alpha_pattern") or {}
    matching = (alpha for regex, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({regex})", module))
    alpha = next(matching, config["lora_alpha"])
    return float(alpha * rank**0.5 if config.get("use_rslora") else alpha)


def _uniform_json(values: Mapping[str, float]) -> str:
    """One number when all modules agree, else the number of each."""
    distinct = set(values.values())
    return json.dumps(distinct.pop() if len(distinct) == 1 else dict(values))
