"""What bench_step.py measures, row by row, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longcat_tune.memory.budget import GIB
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_training import Placement
from longcat_tune.types import Bucket

BUCKETS = {
    "480p": Bucket(832, 480, 93),
    "18k": Bucket(576, 384, 81),
    "720p": Bucket(1280, 720, 93),
    "small": Bucket(160, 160, 37),
}
RESIDENT, STREAMED, CHUNKED = "resident", "streamed", "streamed, FFN in chunks"
MODES = {"480p": (RESIDENT, CHUNKED), "18k": (STREAMED,), "720p": (CHUNKED,)}
"""Rows of a quantized base where all shapes are measured in one call."""
STEPS = {"480p": 2, "18k": 3, "720p": 1, "small": 3}
"""Measured steps of a row, after the first."""


@dataclass
class Row:
    """One line of the table, filled in as it is measured.

    Attributes:
        shape: name of a bucket.
        precision: of the base.
        mode: what is not on the device.
        placement: of weights and activations.
        error: why it was not measured.
        measured: numbers by name.
        predicted: numbers by name.
    """

    shape: str
    precision: str
    mode: str
    placement: Placement
    error: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)

    @property
    def resident(self) -> bool:
        """Whether all weights are on the device."""
        return self.placement.streamed_blocks == 0


def rows_of(shape: ModelShape, shapes: Sequence[str], precisions: Sequence[str]) -> list[Row]:
    """Everything to measure; rows of one precision and one place of the weights share a model."""
    everything = Placement(streamed_blocks=shape.depth, boundaries_on_host=True)
    rows = []
    for name in shapes:
        chunked = replace(everything, ffn_chunk_tokens=256 if name == "small" else 8192)
        places = {RESIDENT: Placement(), STREAMED: everything, CHUNKED: chunked}
        for precision in precisions:
            modes = MODES[name] if len(shapes) > 1 and precision != "bf16" else tuple(places)
            rows += [Row(name, precision, mode, places[mode]) for mode in modes]
    if len(shapes) > 1:
        # By itself it is measured whole; beside the others there is time for one row of it.
        rows = [row for row in rows if row.shape != "720p" or row.precision != "bf16"]
    return sorted(rows, key=lambda row: (precisions.index(row.precision), not row.resident))


HEADS = (
    "shape",
    "precision",
    "mode",
    "s/step",
    "spread",
    "of resident",
    "waiting",
    "device GiB",
    "predicted",
)
HEADS += ("host GiB", "tokens/s", "TFLOP/s")
WIDTHS = (6, 12, 24, 8, 14, 11, 8, 10, 10, 8, 9, 8)


def line(row: Row, rows: Sequence[Row]) -> str:
    """One line of the table."""
    told = [row.shape, row.precision, row.mode]
    if row.error is not None:
        return "  ".join([*padded(told), row.error])
    now = row.measured
    whole = next(
        (one for one in rows if one.resident and (one.shape, one.precision) == (row.shape, row.precision)),
        row,
    )
    ratio = now["seconds"] / whole.measured["seconds"] if whole.measured else None
    device = now["device_bytes"]
    cells = [
        *told,
        f"{now['seconds']:.2f}",
        f"{min(now['all_seconds']):.2f}-{max(now['all_seconds']):.2f}",
        "" if ratio is None else f"{ratio:.3f}",
        f"{now['waiting_share']:.1%}",
        "" if device is None else f"{device / GIB:.2f}",
        f"{row.predicted['device_bytes'] / GIB:.2f}",
        f"{now['host_bytes'] / GIB:.1f}",
        f"{now['tokens_per_second']:,.0f}",
        f"{now['tflops']:.1f}",
    ]
    return "  ".join(padded(cells))


def padded(cells: Sequence[str]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)]
