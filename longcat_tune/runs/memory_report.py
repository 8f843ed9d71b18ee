"""A memory plan as JSON values, as tables and lines for people, and against what was measured in the end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from longcat_tune.memory.budget import GIB, Moment
from longcat_tune.runs.memory_plan import MemoryPlan, Part
from longcat_tune.training.process_memory import device_peak_bytes, host_peak_bytes


def memory_report(plan: MemoryPlan) -> dict[str, Any]:
    """Everything that a plan found out, as JSON values; sizes are in bytes."""
    capacity = plan.machine.capacity
    return {
        "device": plan.machine.name,
        "device_free": capacity.device,
        "host_free": capacity.host,
        "chosen": plan.config.memory.memory_plan == "auto",
        "released_sizes": plan.released,
        "placement": asdict(plan.placement),
        "doubts": list(plan.doubts),
        "parts": [_part_report(plan, part) for part in plan.parts],
    }


def memory_table(report: dict[str, Any]) -> Table:
    """One row per part of a run: what it needs at its fullest, and what a step moves and takes."""
    table = Table("memory of", "device", "host", "moved per step", "seconds per step", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in report["parts"]:
        moved, seconds = part["moved_bytes"], part["seconds"]
        table.add_row(
            part["name"],
            "-" if report["device_free"] is None else _gib(part["device"]["bytes"]),
            _gib(part["host"]["bytes"]),
            "" if moved is None else f"{moved / 1e9:.1f} GB",
            "" if seconds is None else f"{seconds:.1f}",
        )
    return table


def terms_table(report: dict[str, Any]) -> Table:
    """What makes up the fullest moment of training: of the device's memory, or of the only one there is."""
    where = "host" if report["device_free"] is None else "device"
    steps = [part for part in report["parts"] if part["moved_bytes"] is not None]
    fullest = max((part[where] for part in steps), key=lambda one: one["bytes"])
    table = Table(fullest["moment"], "where", "GiB", "how", box=None)
    table.columns[2].justify = "right"
    for term in fullest["terms"]:
        if term["bytes"]:
            table.add_row(term["name"], term["where"], f"{term['bytes'] / GIB:.2f}", term["source"])
    return table


def memory_lines(report: dict[str, Any]) -> list[str]:
    """What there is, and what the plan does with it."""
    placement = report["placement"]
    free = [f"{_gib(report['host_free'])} of host memory"]
    if report["device_free"] is not None:
        free.insert(0, f"{_gib(report['device_free'])} of device memory")
    streamed = placement["streamed_blocks"]
    where = [f"{streamed} blocks are streamed" if streamed else "all blocks are resident"]
    if placement["boundaries_on_host"]:
        where.append("inputs of blocks wait in host memory")
    if placement["ffn_chunk_tokens"] is not None:
        where.append(f"feed-forward layers take {placement['ffn_chunk_tokens']:,} tokens at a time")
    how = "memory_plan auto: " if report["chosen"] else ""
    lines = [f"memory: {report['device']} has {' and '.join(free)} free; {how}{', '.join(where)}"]
    lines += [f"memory: {doubt}" for doubt in report["doubts"]]
    if report["released_sizes"]:
        lines.append("memory: planned with the released model's sizes, as the weights are not here yet")
    return lines


def measured_peaks(plan: MemoryPlan, device: torch.device) -> dict[str, int | None]:
    """The peaks that a plan predicted, and those that this process reached; in bytes.

    The device's are of torch's tensors, without what its allocator and CUDA hold beside them.
    """
    card = plan.machine.capacity.device is not None
    return {
        "predicted_device_bytes": plan.peak(device=True) if card else None,
        "measured_device_bytes": device_peak_bytes(device),
        "predicted_host_bytes": plan.peak(device=False),
        "measured_host_bytes": host_peak_bytes(),
    }


def peak_lines(peaks: dict[str, int | None]) -> list[str]:
    """What `measured_peaks` gives, for people."""
    lines = []
    for where in ("device", "host"):
        predicted, measured = peaks[f"predicted_{where}_bytes"], peaks[f"measured_{where}_bytes"]
        if predicted is not None and measured is not None:
            lines.append(f"peak of {where} memory: {_gib(measured)}; predicted: {_gib(predicted)}")
    return lines


def _part_report(plan: MemoryPlan, part: Part) -> dict[str, Any]:
    budget, cost = plan.budget(part), part.cost
    return {
        "name": part.name,
        "device": _moment_report(budget.fullest("device"), "device"),
        "host": _moment_report(budget.fullest("host"), "host"),
        "moved_bytes": None if cost is None else cost.moved,
        "operations": None if cost is None else cost.operations,
        "seconds": plan.seconds(part),
    }


def _moment_report(moment: Moment, where: str) -> dict[str, Any]:
    own = [term for term in moment.terms if term.where == where]
    return {
        "bytes": sum(term.num_bytes for term in own),
        "tensor_bytes": sum(term.num_bytes for term in own if not term.reserve),
        "moment": moment.name,
        "terms": [
            {"name": term.name, "where": term.where, "bytes": term.num_bytes, "source": term.source}
            for term in own
        ],
    }


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
