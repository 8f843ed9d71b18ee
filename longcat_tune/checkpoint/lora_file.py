"""LoRA files: read from any known format into one form, written in any, and every write proved.

A file replaces the former one only after it was read back and gave the same update. Knows names, matrices and
scales; never a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from longcat_tune.checkpoint.lora_reader import LoraLayout, OpenLora, open_lora
from longcat_tune.checkpoint.lora_update import LoraUpdate, relative_difference
from longcat_tune.checkpoint.lora_writer import (
    AS_IT_IS,
    LoraFormat,
    NamedTensors,
    OfficialChoices,
    format_tensors,
    require_representable,
)
from longcat_tune.checkpoint.peft_config import DIFFUSERS_KEY, OWN_KEY, adapter_metadata
from longcat_tune.checkpoint.tensor_stream import Layout, in_order, write_tensor_stream
from longcat_tune.errors import CheckpointError
from longcat_tune.files import PART_SUFFIX, write_atomically

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_FILES: Mapping[LoraFormat, str] = {
    "peft": LORA_FILE,
    "official": "lora.official.safetensors",
    "comfyui": "lora.comfyui.safetensors",
    "diffsynth": "lora.diffsynth.safetensors",
}
"""What a format's file is called in the folder of a checkpoint."""

FORMAT_VERSION = "1"
TOLERANCE = 1e-6
"""How far what is read back may be from what was to be written, relative to the update's norm."""

OFFICIAL_RANK_KEY = "lora_network_dim"
"""Under which an official file says what Meituan's loader must be given as the argument of this name."""

OF_ONE_FILE = {
    "format",
    "rank",
    OWN_KEY,
    DIFFUSERS_KEY,
    OFFICIAL_RANK_KEY,
    "longcat_tune_format",
    "longcat_tune_layout",
}
"""Metadata that describes a file's own tensors and is not carried over into another."""


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A LoRA by itself: the update of a module is alpha / rank * B @ A.

    Attributes:
        weights: `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank] of every module;
            of a DoRA also `<module>.lora_magnitude_vector` [out].
        alphas: per module.
        metadata: what the file says about itself.
        layout: the format it was read from.
    """

    weights: dict[str, Tensor]
    alphas: dict[str, float]
    metadata: dict[str, str] = field(default_factory=dict)
    layout: LoraLayout = "peft"

    @property
    def ranks(self) -> dict[str, int]:
        """Rank per module."""
        return {name: self.weights[f"{name}.lora_A.weight"].shape[0] for name in self.alphas}

    @property
    def has_dora(self) -> bool:
        """Whether any module has a magnitude."""
        return any(f"{name}.lora_magnitude_vector" in self.weights for name in self.alphas)

    def update(self, module: str) -> LoraUpdate:
        """One module's matrices; nothing is copied."""
        down = self.weights[f"{module}.lora_A.weight"]
        return LoraUpdate(
            down,
            self.weights[f"{module}.lora_B.weight"],
            self.alphas[module] / down.shape[0],
            self.weights.get(f"{module}.lora_magnitude_vector"),
        )

    def updates(self) -> Iterator[tuple[str, LoraUpdate]]:
        """All modules, one after the other."""
        for module in self.alphas:
            yield module, self.update(module)


def write_lora_files(folder: Path, lora: LoraWeights, formats: Sequence[LoraFormat]) -> tuple[Path, ...]:
    """Write a LoRA in several formats, each under its own name; see `write_lora`.

    Args:
        folder: made when missing.
        lora: what to write.
        formats: at least one.

    Returns:
        The files, in the order of the formats.

    Raises:
        ConfigError: a format cannot hold this LoRA; nothing is written then.
        CheckpointError: a file did not give back what was written.
        UserError: the folder cannot be written to or the disk is full.
    """
    for form in formats:
        require_representable(form, lora.alphas, dora=lora.has_dora)
    paths = [folder / LORA_FILES[form] for form in formats]
    for path, form in zip(paths, formats, strict=True):
        write_lora(path, lora, form)
    return tuple(paths)


def copy_lora_files(source: Path, target: Path, formats: Sequence[LoraFormat]) -> None:
    """Put files that were proved when they were written into another folder, each in one step.

    What a killed process has left of such a file is removed.

    Args:
        source: the folder that `write_lora_files` wrote.
        target: made when missing.
        formats: that it wrote.

    Raises:
        UserError: the folder cannot be written to or the disk is full.
    """
    for name in (LORA_FILES[form] for form in formats):
        for leftover in target.glob(f"{name}.*{PART_SUFFIX}"):
            leftover.unlink()
        write_atomically(target / name, partial(shutil.copyfile, source / name))


def write_lora(
    path: Path, lora: LoraWeights, form: LoraFormat = "peft", choices: OfficialChoices = AS_IT_IS
) -> None:
    """Write one file, read it back and compare, then put it in its place; layer by layer.

    Args:
        path: created or replaced in one step.
        lora: its metadata tells what the caller knows: targets, base model, step.
        form: the format.
        choices: for the format official.

    Raises:
        ConfigError: the format cannot hold this LoRA, or a choice does not fit it.
        CheckpointError: the file did not give back what was written; a former file is left as it was.
        UserError: the folder cannot be written to or the disk is full.
    """
    require_representable(form, lora.alphas, dora=lora.has_dora)
    tensors = format_tensors(form, lora.updates, choices)
    layouts = in_order({name: Layout.of(tensor) for name, tensor in tensors()})

    def write(part: Path) -> None:
        write_tensor_stream(
            part, layouts, _by_size(layouts.values(), tensors), _metadata(lora, form, layouts)
        )
        _require_same(part, lora, form)

    write_atomically(path, write)


def read_lora(path: Path) -> LoraWeights:
    """Read a LoRA of any known format; an official one's separate chunks become one block-diagonal matrix.

    Args:
        path: a safetensors file, or a folder that holds one under a name of LORA_FILES.

    Raises:
        CheckpointError: the file is missing, damaged, incomplete or of a format that is not known.
    """
    weights: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    with open_lora(lora_file(path)) as file:
        for module, update in file.updates():
            weights[f"{module}.lora_A.weight"] = update.down
            weights[f"{module}.lora_B.weight"] = update.up
            if update.magnitude is not None:
                weights[f"{module}.lora_magnitude_vector"] = update.magnitude
            alphas[module] = update.scale * update.rank
        return LoraWeights(weights, alphas, file.metadata, file.layout)


def lora_file(path: Path) -> Path:
    """The file that a path means: of a folder, the first of LORA_FILES that it has."""
    if not path.is_dir():
        return path
    files = [path / name for name in LORA_FILES.values()]
    return next((file for file in files if file.is_file()), files[0])


def _by_size(layouts: Iterable[Layout], tensors: Callable[[], NamedTensors]) -> NamedTensors:
    """The tensors in the order of `in_order`, without holding them: one pass for each size of number."""
    for size in sorted({layout.dtype.itemsize for layout in layouts}, reverse=True):
        yield from ((name, tensor) for name, tensor in tensors() if tensor.dtype.itemsize == size)


def _metadata(lora: LoraWeights, form: LoraFormat, layouts: Mapping[str, Layout]) -> dict[str, str]:
    metadata = {key: value for key, value in lora.metadata.items() if key not in OF_ONE_FILE} | {
        # `format` is safetensors' own: loaders of other libraries refuse anything but pt there.
        "format": "pt",
        "longcat_tune_format": FORMAT_VERSION,
        "longcat_tune_layout": form,
    }
    if form == "peft":
        metadata["rank"] = _uniform_json(lora.ranks)
        metadata[OWN_KEY] = _uniform_json(lora.alphas)
        metadata[DIFFUSERS_KEY] = adapter_metadata(lora.ranks, lora.alphas, dora=lora.has_dora)
    if form == "official":
        ups = (layout for name, layout in layouts.items() if ".lora_up." in name)
        metadata[OFFICIAL_RANK_KEY] = str(next(ups).shape[1])
    return metadata


def _require_same(path: Path, lora: LoraWeights, form: LoraFormat) -> None:
    with open_lora(path) as file:
        fault = _fault(file, lora)
    if fault is not None:
        msg = (
            f"the LoRA file of format {form} did not give back what was written to it ({fault}); a former "
            "file is left as it was; check the disk, and that the weights are finite"
        )
        raise CheckpointError(msg)


def _fault(file: OpenLora, lora: LoraWeights) -> str | None:
    """The first thing that differs."""
    if different := sorted(file.shares.keys() ^ lora.alphas.keys()):
        return f"{different[0]} is in one of both only"
    for module, update in lora.updates():
        difference = relative_difference(update, file.update(module))
        # Written so that a NaN is a fault.
        if not difference <= TOLERANCE:
            return f"{module} differs by {difference:.1e} of its size"
    return None


def _uniform_json(values: Mapping[str, float]) -> str:
    """One number when all modules agree, else the number of each."""
    distinct = set(values.values())
    return json.dumps(distinct.pop() if len(distinct) == 1 else dict(values))
