"""LoRA files of every known format, opened so that one layer at a time is read, under the model's own names.

Split parts come out fused, separate ones block-diagonal, padding gone. Knows no model: whether the layers
exist is for others to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longcat_tune.checkpoint.key_maps import (
    EXPECTED,
    PartName,
    Share,
    is_comfyui,
    is_kohya,
    is_official,
    lora_name,
    official_name,
    share_of,
)
from longcat_tune.checkpoint.lora_update import LoraUpdate, fuse_rows, without_padding
from longcat_tune.checkpoint.peft_config import stated_alpha
from longcat_tune.errors import CheckpointError

logger = logging.getLogger(__name__)

LoraLayout = Literal["peft", "official", "comfyui", "musubi"]
"""How the keys of a file are made; `peft` also stands for DiffSynth's, which have the same names."""

UNREADABLE = {
    "dora_scale": "DoRA as ComfyUI names it, which its readers apply in different ways",
    "lokr_": "a LoKr",
    "hada_": "a LoHa",
    "oft_": "an OFT",
}
"""Parts of keys of other kinds of adapters, and what those are."""

Keys = dict[str, str]


@dataclass(frozen=True, slots=True)
class OpenLora:
    """A LoRA file whose names are read and whose matrices are not.

    Attributes:
        path: the file.
        layout: its format.
        metadata: what it says about itself.
        shares: for every layer, the keys of its parts by role; a fused layer may have one set per share.
        handle: of safetensors.
        alpha_of: what the file states beside its tensors.
        unscaled: layers read so far that state no alpha.
    """

    path: Path
    layout: LoraLayout
    metadata: dict[str, str]
    shares: Mapping[str, Sequence[Keys | None]]
    handle: Any
    alpha_of: Callable[[str, int], float | None]
    unscaled: set[str] = field(default_factory=set)

    @property
    def num_parameters(self) -> int:
        """Elements of all matrices as `update` gives them, by the file's head alone.

        At most so many: padding goes, and shares may turn out to have one down matrix in common.
        """
        total = 0
        for shares in self.shares.values():
            given = [keys for keys in shares if keys is not None]
            downs = [shape for keys in given for shape in self._shapes(keys, "lora_A", "lora_down")]
            ups = [shape for keys in given for shape in self._shapes(keys, "lora_B", "lora_up")]
            inputs = max((shape[1] for shape in downs), default=0)
            outputs = sum(shape[0] for shape in ups) * len(shares) // len(given)
            total += sum(shape[0] for shape in downs) * (inputs + outputs)
        return total

    def update(self, module: str) -> LoraUpdate:
        """Read one layer.

        Raises:
            CheckpointError: a matrix is missing, or they do not fit together.
        """
        try:
            if self.layout == "official":
                keys = self.shares[module][0]
                assert keys is not None
                return self._official(module, keys)
            shares = self.shares[module]
            return fuse_rows([None if keys is None else self._plain(module, keys) for keys in shares])
        except ValueError as error:
            raise CheckpointError(f"LoRA file {self.path}: {module}: {error}") from error

    def updates(self) -> Iterator[tuple[str, LoraUpdate]]:
        """Read all layers, one after the other.

        Raises:
            CheckpointError: as `update`.
        """
        for module in self.shares:
            yield module, self.update(module)
        if self.unscaled:
            logger.info(
                "%s states no alpha for %d modules: alpha = rank is assumed", self.path, len(self.unscaled)
            )

    def _plain(self, module: str, keys: Keys) -> LoraUpdate:
        down, up = self._required(module, keys, "lora_A", "lora_B")
        self._check_shapes(module, down, [up])
        rank = down.shape[0]
        stated = (
            self.handle.get_tensor(keys["alpha"]).item() if "alpha" in keys else self.alpha_of(module, rank)
        )
        if stated is None:
            self.unscaled.add(module)
        magnitude = keys.get("lora_magnitude_vector")
        return LoraUpdate(
            down,
            up,
            1.0 if stated is None else stated / rank,
            None if magnitude is None else self.handle.get_tensor(magnitude).reshape(-1),
        )

    def _official(self, module: str, keys: Keys) -> LoraUpdate:
        """Source of the maths: longcat_video/modules/lora_utils.py; chunks of the output share no rank."""
        chunks = sum(part.startswith("lora_up.blocks.") for part in keys)
        up_names = [f"lora_up.blocks.{j}.weight" for j in range(chunks)] or ["lora_up.weight"]
        scale, down, *ups = self._required(module, keys, "alpha_scale", "lora_down.weight", *up_names)
        self._check_shapes(module, down, ups)
        downs, ups = without_padding(down.chunk(len(ups)), ups)
        if len(ups) == 1:
            return LoraUpdate(downs[0], ups[0], scale.item())
        return LoraUpdate(torch.cat(downs), torch.block_diag(*ups), scale.item())

    def _shapes(self, keys: Keys, *roles: str) -> list[list[int]]:
        """Of the matrices in these roles; what else has such a name is refused when it is read."""
        named = (key for part, key in keys.items() if part.startswith(roles))
        shapes = (self.handle.get_slice(key).get_shape() for key in named)
        return [shape for shape in shapes if len(shape) == 2]

    def _required(self, module: str, keys: Keys, *names: str) -> list[Tensor]:
        missing = [name for name in names if name not in keys]
        if missing:
            msg = (
                f"LoRA file {self.path} is incomplete: {module} has {', '.join(keys)} but no "
                f"{', '.join(missing)}; fetch or write the file again"
            )
            raise CheckpointError(msg)
        return [self.handle.get_tensor(keys[name]) for name in names]

    def _check_shapes(self, module: str, down: Tensor, ups: Sequence[Tensor]) -> None:
        shapes = [tuple(tensor.shape) for tensor in (down, *ups)]
        fits = all(len(shape) == 2 for shape in shapes) and all(
            shape[1] * len(ups) == shapes[0][0] for shape in shapes[1:]
        )
        if not fits:
            msg = (
                f"LoRA file {self.path}: the matrices of {module} have shapes {', '.join(map(str, shapes))}, "
                "but the first must have as many rows as the others have columns; only plain LoRA on linear "
                "layers is known here"
            )
            raise CheckpointError(msg)


@contextmanager
def open_lora(path: Path) -> Iterator[OpenLora]:
    """Open a file of any known format.

    Raises:
        CheckpointError: it is missing, damaged, empty or of a format that is not known.
    """
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "does not exist" if missing else f"cannot be read ({error})"
            msg = f"LoRA file {path} {reason}; give a complete safetensors file"
            raise CheckpointError(msg) from error
        metadata, keys = handle.metadata() or {}, list(handle.keys())
        layout = _layout(path, keys)
        shares = _by_layer(path, keys, official_name if layout == "official" else lora_name)
        yield OpenLora(path, layout, metadata, shares, handle, stated_alpha(path, metadata))


def _layout(path: Path, keys: Sequence[str]) -> LoraLayout:
    if any(is_official(key) for key in keys):
        return "official"
    if any(is_kohya(key) for key in keys):
        return "musubi"
    if not keys:
        raise CheckpointError(f"LoRA file {path} is empty; expected keys like {EXPECTED}")
    names = [name for key in keys if (name := lora_name(key))]
    return "comfyui" if any(is_comfyui(name.module) for name in names) else "peft"


def _by_layer(
    path: Path, keys: Sequence[str], split: Callable[[str], PartName | None]
) -> dict[str, list[Keys | None]]:
    layers: dict[str, list[Keys | None]] = {}
    for key in keys:
        name = split(key)
        if name is None:
            known = next((what for part, what in UNREADABLE.items() if part in key), None)
            reason = f"which is of {known}" if known else "which is not known here"
            msg = f"LoRA file {path} holds {key}, {reason}; expected keys like {EXPECTED}"
            raise CheckpointError(msg)
        share = share_of(name.module) if split is lora_name else Share(name.module, 0, 1)
        shares = layers.setdefault(share.module, [None] * share.of)
        if len(shares) != share.of:
            msg = f"LoRA file {path} holds {share.module} whole and in parts; write it with one of the two"
            raise CheckpointError(msg)
        shares[share.number] = _with_part(path, shares[share.number] or {}, name, key)
    return layers


def _with_part(path: Path, keys: Keys, name: PartName, key: str) -> Keys:
    if name.part in keys:
        msg = f"LoRA file {path} holds {keys[name.part]} and {key}, which mean the same; write it again"
        raise CheckpointError(msg)
    return keys | {name.part: key}
