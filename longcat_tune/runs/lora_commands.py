"""The commands `lora inspect` and `lora convert`; `lora merge` is in `lora_merge`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from longcat_tune.checkpoint.lora_file import OFFICIAL_RANK_KEY, LoraWeights, lora_file, read_lora, write_lora
from longcat_tune.checkpoint.lora_reader import LoraLayout
from longcat_tune.checkpoint.lora_writer import LoraFormat, OfficialChoices
from longcat_tune.errors import ConfigError
from longcat_tune.log import output
from longcat_tune.runs.problems import show_json

logger = logging.getLogger(__name__)

TAKEN_BY: Mapping[LoraLayout, str] = {
    "peft": "longcat-tune, PEFT and diffusers-style loaders; DiffSynth-Studio if the names have no prefix",
    "official": "longcat-tune and Meituan's LongCat-Video repository",
    "comfyui": "longcat-tune and ComfyUI with WanVideoWrapper",
    "musubi": "longcat-tune and musubi-tuner; ComfyUI's wrapper only where q, k and v are apart",
}
"""See docs/lora_formats.md."""

STATED = ("base_model", "step", "targets", OFFICIAL_RANK_KEY)
"""What a file may say of itself, among what is shown."""


def inspect(paths: Sequence[Path], *, as_json: bool = False) -> None:
    """Show what LoRA files hold.

    Args:
        paths: files, or folders of checkpoints.
        as_json: for machines; the same content.

    Raises:
        CheckpointError: a file is missing, damaged or of no known format.
    """
    reports = [_report(lora_file(path)) for path in paths]
    if as_json:
        show_json(reports)
        return
    for report in reports:
        output.print("\n".join(_lines(report)), markup=False, highlight=False)
        output.print(_table(report))


def convert(
    source: Path,
    target: Path,
    form: LoraFormat,
    *,
    pad_to: int | None = None,
    separate: bool = False,
) -> None:
    """Write a LoRA file in another format, read it back and compare.

    Args:
        source: a file of any known format, or a checkpoint's folder.
        target: must not exist.
        form: the format.
        pad_to: official only: rank of all layers, at least the largest; 128 loads with the loader's defaults.
        separate: official only: keep q, k, v and so on apart where the matrices are.

    Raises:
        ConfigError: target exists, or the format cannot hold the LoRA in this way.
        CheckpointError: source cannot be read, or the result was not equal.
        UserError: the disk is full or protected.
    """
    if target.exists():
        raise ConfigError(f"{target} exists; choose another name, or delete it first")
    if form != "official" and (pad_to is not None or separate):
        raise ConfigError(f"pad_to and separate have no effect on the format {form}; leave them out")
    lora = read_lora(source)
    write_lora(target, lora, form, OfficialChoices(pad_to, separate))
    logger.info("%s: %s, from %s of format %s", target, form, lora_file(source), lora.layout)
    if form == "official":
        rank = read_lora(target).metadata[OFFICIAL_RANK_KEY]
        logger.info("Meituan's repository loads it with load_lora(..., %s=%s)", OFFICIAL_RANK_KEY, rank)


def strength_given(text: str) -> tuple[Path, float]:
    """Read `FILE` or `FILE:STRENGTH`.

    Args:
        text: of the command line; a name that ends in a colon and a number has to be given a strength too.
    """
    name, colon, strength = text.rpartition(":")
    if colon and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", strength):
        return Path(name), float(strength)
    return Path(text), 1.0


def _report(path: Path) -> dict[str, Any]:
    lora = read_lora(path)
    return {
        "file": str(path),
        "format": lora.layout,
        "taken_by": TAKEN_BY[lora.layout],
        "bytes": path.stat().st_size,
        **{key: lora.metadata.get(key) for key in STATED},
        "dora": lora.has_dora,
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in lora.weights.values()}),
        "modules": len(lora.alphas),
        "parameters": sum(weight.numel() for weight in lora.weights.values()),
        "kinds": _kinds(lora),
    }


def _kinds(lora: LoraWeights) -> list[dict[str, Any]]:
    """Layers that differ only in the block's number, together."""
    kinds: dict[str, list[str]] = {}
    for module in lora.alphas:
        kinds.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", module), []).append(module)
    return [{"kind": kind, **_of_kind(lora, modules)} for kind, modules in kinds.items()]


def _of_kind(lora: LoraWeights, modules: Sequence[str]) -> dict[str, Any]:
    updates = [lora.update(module) for module in modules]
    return {
        "modules": len(modules),
        "ranks": sorted({update.rank for update in updates}),
        "alphas": sorted({round(lora.alphas[module], 6) for module in modules}),
        "scales": sorted({round(update.scale, 6) for update in updates}),
        "norm": sum(update.norm() ** 2 for update in updates) ** 0.5,
    }


def _lines(report: Mapping[str, Any]) -> list[str]:
    stated = [f"{key} {report[key]}" for key in STATED if report[key] is not None]
    kind = "DoRA" if report["dora"] else "LoRA"
    return [
        f"{report['file']}: {kind} of format {report['format']}, {report['bytes'] / 1e6:,.1f} MB",
        f"  read by {report['taken_by']}",
        f"  {report['modules']} layers, {report['parameters']:,} numbers ({', '.join(report['dtypes'])})",
        f"  {', '.join(stated) or 'says nothing of base model, step and targets'}",
    ]


def _table(report: Mapping[str, Any]) -> Table:
    table = Table("layers", "number", "rank", "alpha", "scale", "norm of the update", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report["kinds"]:
        values = (", ".join(f"{one:g}" for one in row[key]) for key in ("ranks", "alphas", "scales"))
        table.add_row(row["kind"], str(row["modules"]), *values, f"{row['norm']:.4g}")
    return table
