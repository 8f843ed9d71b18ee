"""How much memory this process holds, and held at most; knows nothing of what for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def host_bytes() -> int:
    """Host memory that this process holds now; 0 where the system does not say."""
    return bytes_in_table(STATUS, "VmRSS") or 0


def host_peak_bytes() -> int:
    """The most host memory that this process held so far."""
    # On Linux ru_maxrss begins with what the process held that started this one.
    if (peak := bytes_in_table(STATUS, "VmHWM")) is not None:
        return peak
    # Imported here because Windows lacks it.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak if sys.platform == "darwin" else peak * 2**10


def device_peak_bytes(device: torch.device) -> int | None:
    """The most that torch's tensors held of a card's memory so far; None where there is no card."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_memory_gib(device: torch.device) -> float:
    """Give the most memory that was held at once so far: the device's on CUDA, else the process's."""
    held = device_peak_bytes(device)
    return (host_peak_bytes() if held is None else held) / 2**30


def bytes_in_table(path: Path, field: str) -> int | None:
    """Read a field of one of Linux's tables of memory, in bytes; None elsewhere."""
    if not path.is_file():
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 2**10
