"""The command `lora merge`: a base transformer with LoRAs put into its weights, one tensor at a time.

Needs the memory of the largest weight in float32 a few times over, whatever the model's size.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LoraWeights, read_lora
from longcat_tune.checkpoint.tensor_stream import Layout, read_layouts, write_tensor_stream
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.files import PART_SUFFIX, explained_disk_errors, flush_to_disk, write_json_atomically
from longcat_tune.log import progress
from longcat_tune.model.lora import check_modules
from longcat_tune.model.merge import merged_weight, weight_change
from longcat_tune.model.weights import (
    FLAVOURS,
    TINY,
    TRANSFORMER,
    empty_transformer,
    resolve_checkpoint,
    shard_paths,
)

logger = logging.getLogger(__name__)

RECORD_NAME = "merged_loras.json"
MERGED_DTYPES = {torch.bfloat16, torch.float16, torch.float32}
"""Quantized weights have lost what a LoRA would add to them."""


@dataclass(frozen=True, slots=True)
class _Adapter:
    """One LoRA to merge."""

    path: Path
    strength: float
    lora: LoraWeights


def merge(base: str, loras: Sequence[tuple[Path, float]], out_folder: Path) -> None:
    """Write a complete transformer folder whose weights have the LoRAs in them.

    The result is `W + sum of strength * change` in float32, rounded once to the base's dtype; everything
    else in the folder is copied. It is complete or absent.

    Args:
        base: a checkpoint folder, a transformer folder, a hub id, or a flavour: final, tiny.
        loras: files and their strengths; 1 is as trained.
        out_folder: must not exist, or be empty.

    Raises:
        ConfigError: there is nothing to merge, or out_folder is in use.
        CheckpointError: a file is damaged, or a LoRA was made for another model.
        UserError: the disk is full or protected.
    """
    if not loras:
        raise ConfigError("nothing to merge: give at least one LoRA file")
    if out_folder.exists() and (not out_folder.is_dir() or any(out_folder.iterdir())):
        raise ConfigError(f"{out_folder} exists; merge writes to a new folder, choose another name")
    source = _transformer_folder(base)
    shards = shard_paths(source)
    adapters = [_Adapter(path, strength, read_lora(path)) for path, strength in loras]
    for adapter in adapters:
        _require_fit(adapter, source)
    part = out_folder.with_name(f"{out_folder.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        with explained_disk_errors(part):
            _write_folder(part, source, shards, adapters)
            if out_folder.exists():
                out_folder.rmdir()
            part.replace(out_folder)
            flush_to_disk(out_folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("%s holds %s with %d LoRA files merged in", out_folder, source, len(loras))


def _transformer_folder(base: str) -> Path:
    flavour = base if base in {*FLAVOURS, TINY} else None
    root = resolve_checkpoint(
        None if flavour else base, flavour=flavour or next(iter(FLAVOURS)), components=(TRANSFORMER,)
    )
    inside = root / TRANSFORMER
    return inside if inside.is_dir() else root


def _require_fit(adapter: _Adapter, source: Path) -> None:
    try:
        check_modules(empty_transformer(source), adapter.lora.weights)
    except CheckpointError as error:
        raise CheckpointError(f"{adapter.path}: {error}") from error


def _write_folder(part: Path, source: Path, shards: Sequence[Path], adapters: Sequence[_Adapter]) -> None:
    part.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path not in shards:
            shutil.copy(path, part / path.name)
    with progress("Merging", len(shards)) as bar:
        for shard in shards:
            _write_shard(part / shard.name, shard, adapters)
            bar.advance(shard.name)
    record = [
        {"file": str(one.path), "strength": one.strength, "metadata": one.lora.metadata} for one in adapters
    ]
    write_json_atomically(part / RECORD_NAME, {"base": str(source), "loras": record})


def _write_shard(path: Path, shard: Path, adapters: Sequence[_Adapter]) -> None:
    try:
        layouts = read_layouts(shard)
        with safe_open(shard, framework="pt") as file:
            write_tensor_stream(path, layouts, _merged(file, layouts, adapters), file.metadata() or {})
    except SafetensorError as error:
        msg = f"{shard}: damaged or incomplete ({error}); fetch it again"
        raise CheckpointError(msg) from error
    flush_to_disk(path)


def _merged(
    file: Any, layouts: Mapping[str, Layout], adapters: Sequence[_Adapter]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a shard; only those that a LoRA adapts are computed."""
    for name in layouts:
        tensor = file.get_tensor(name)
        module = name.removesuffix(".weight")
        own = [one for one in adapters if module in one.lora.alphas]
        if own and tensor.dtype not in MERGED_DTYPES:
            msg = f"{name} is {tensor.dtype}, into which nothing can be merged; merge into the bf16 weights"
            raise CheckpointError(msg)
        yield name, merged_weight(tensor, _changes(module, tensor, own)) if own else tensor


def _changes(module: str, weight: Tensor, adapters: Sequence[_Adapter]) -> Iterator[Tensor]:
    for one in adapters:
        update = one.lora.update(module)
        yield weight_change(
            weight,
            update.down,
            update.up,
            update.scale,
            magnitude=update.magnitude,
            strength=one.strength,
        )
