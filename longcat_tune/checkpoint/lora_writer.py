"""The tensors of a LoRA in each format, layer by layer, and what a format cannot hold.

Meituan's loader builds its layers from one rank for the whole file, so smaller ranks are padded; the ComfyUI
wrapper's model has q, k and v as layers of their own, so those are split. Sources: see `key_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longcat_tune.checkpoint.key_maps import (
    COMFYUI_PREFIX,
    PEFT_PREFIX,
    comfyui_names,
    fused_parts,
    official_base,
)
from longcat_tune.checkpoint.lora_update import LoraUpdate, folded, own_blocks, padded, split_rows
from longcat_tune.errors import ConfigError

LoraFormat = Literal["peft", "official", "comfyui", "diffsynth"]
"""What can be written; the first three also at every save of a run."""

HOLDS_DORA = {"peft"}
"""Meituan's loader knows no magnitudes. The ComfyUI wrapper reads them only where it merges a LoRA into the
weights, and leaves them out without a word where it does not. DiffSynth leaves them out."""

Updates = Iterable[tuple[str, LoraUpdate]]
NamedTensors = Iterator[tuple[str, Tensor]]


class OfficialChoices(NamedTuple):
    """What can be chosen for Meituan's format.

    Attributes:
        pad_to: rank of every layer; None takes the largest.
        separate: write layers as Meituan trains them, one LoRA for each of q, k, v and so on, where the
            matrices are so.
    """

    pad_to: int | None = None
    separate: bool = False


AS_IT_IS = OfficialChoices()
"""The LoRA's own largest rank, everything fused."""


def require_representable(form: LoraFormat, modules: Collection[str], *, dora: bool) -> None:
    """Refuse a format that cannot hold a LoRA, before anything is written or trained.

    Args:
        form: the format.
        modules: the layers that are adapted.
        dora: whether they have magnitudes.

    Raises:
        ConfigError: the format has no magnitudes, or no name for a layer.
    """
    if dora and form not in HOLDS_DORA:
        msg = (
            f"the format {form} cannot hold DoRA: the programs that read it know no magnitudes; write peft, "
            "or merge the LoRA into the base (longcat-tune lora merge)"
        )
        raise ConfigError(msg)
    nameless = [module for module in modules if form == "comfyui" and comfyui_names(module) is None]
    if nameless:
        msg = (
            f"the format comfyui has no name for {nameless[0]} ({len(nameless)} such layers); write peft or "
            "official, or train without them"
        )
        raise ConfigError(msg)


def format_tensors(
    form: LoraFormat, updates: Callable[[], Updates], choices: OfficialChoices
) -> Callable[[], NamedTensors]:
    """The tensors of a file; every call of the result goes through the layers again.

    Args:
        form: one that `require_representable` let pass.
        updates: gives the layers, one after the other.
        choices: for the format official.

    Raises:
        ConfigError: pad_to is below the LoRA's rank, or separate asked of matrices that are not so.
    """
    if form == "official":
        rank = _official_rank(updates(), choices)
        return lambda: _official_tensors(updates(), rank, separate=choices.separate)
    if form == "comfyui":
        return lambda: _comfyui_tensors(updates())
    if form == "diffsynth":
        return lambda: _diffsynth_tensors(updates())
    return lambda: _peft_tensors(updates())


def _peft_tensors(updates: Updates) -> NamedTensors:
    for module, update in updates:
        base = PEFT_PREFIX + module
        yield f"{base}.lora_A.weight", update.down
        yield f"{base}.lora_B.weight", update.up
        if update.magnitude is not None:
            yield f"{base}.lora_magnitude_vector", update.magnitude


def _diffsynth_tensors(updates: Updates) -> NamedTensors:
    """Like DiffSynth's own: no alpha, which it calls deprecated."""
    for module, update in updates:
        yield f"{module}.lora_A.default.weight", update.down
        yield f"{module}.lora_B.default.weight", folded(update).up


def _comfyui_tensors(updates: Updates) -> NamedTensors:
    for module, update in updates:
        names = comfyui_names(module)
        assert names is not None
        for name, share in zip(names, split_rows(update, len(names)), strict=True):
            base = COMFYUI_PREFIX + name
            yield f"{base}.lora_A.weight", share.down
            yield f"{base}.lora_B.weight", share.up
            yield f"{base}.alpha", torch.tensor(share.scale * share.rank)


def _official_tensors(updates: Updates, rank: int, *, separate: bool) -> NamedTensors:
    for module, update in updates:
        base = official_base(module)
        ups = _chunks(module, update.up, separate=separate)
        pairs = [padded(*pair, rank) for pair in zip(update.down.chunk(len(ups)), ups, strict=True)]
        yield f"{base}.alpha_scale", torch.tensor(update.scale)
        yield f"{base}.lora_down.weight", torch.cat([down for down, _ in pairs]) if pairs[1:] else pairs[0][0]
        for number, (_, up) in enumerate(pairs):
            name = "lora_up.weight" if len(pairs) == 1 else f"lora_up.blocks.{number}.weight"
            yield f"{base}.{name}", up


def _official_rank(updates: Updates, choices: OfficialChoices) -> int:
    ranks, separated = [], 0
    for module, update in updates:
        chunks = len(_chunks(module, update.up, separate=choices.separate))
        separated += chunks > 1
        ranks.append(update.rank // chunks)
    rank = max(ranks)
    if choices.separate and not separated:
        msg = (
            "separate (true): no layer's matrices are block-diagonal, which is what keeps q, k and v apart; "
            "leave it out, any LoRA can be written fused"
        )
        raise ConfigError(msg)
    if choices.pad_to is not None and choices.pad_to < rank:
        msg = f"pad_to ({choices.pad_to}) must be at least the LoRA's largest rank; use {rank} or more"
        raise ConfigError(msg)
    return choices.pad_to or rank


def _chunks(module: str, up: Tensor, *, separate: bool) -> tuple[Tensor, ...]:
    """One up matrix for each thing the layer computes, if they are wanted and apart; else the whole."""
    count = fused_parts(module) if separate else 1
    return (up,) if count == 1 else own_blocks(up, count) or (up,)
