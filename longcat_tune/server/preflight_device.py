"""The device that a run is likely to get: what a check should plan for, and how large a card is.

A device that is free counts as it is; of a busy one, what it will have when its job is over.

Knows nothing of configs.
"""

from __future__ import annotations

import subprocess
from functools import cache

import psutil

from longcat_tune.server.devices import PATIENCE, Device
from longcat_tune.server.jobs import JobBoard
from longcat_tune.server.preflight import Conditions

MEMORY_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i")


def conditions(jobs: JobBoard) -> Conditions:
    """What the next check should plan for; may take a moment, as the driver is asked.

    Args:
        jobs: what runs now, and on which device.
    """
    taken = {job.device for job in jobs.active() if job.state != "queued"}
    free = next((device for device in jobs.devices if device.id not in taken), None)
    if free is not None:
        return Conditions(environment=free.environment)
    device = jobs.devices[0]
    # What the running job has in use is free again when the new one starts.
    host = ("--host-memory", str(psutil.virtual_memory().total))
    size = card_mib(device)
    card = () if size is None else ("--device-memory", f"{size}MiB")
    return Conditions((*host, *card), device.environment, busy=True)


def card_mib(device: Device) -> int | None:
    """Memory of a card in MiB, all of it; None without a card, or where the driver does not say."""
    return None if device.number is None else _asked_mib(device.id)


@cache
def _asked_mib(card: str) -> int | None:
    try:
        asked = subprocess.run(
            [*MEMORY_QUERY, card], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    size = asked.stdout.strip()
    return int(size) if size.isdecimal() else None
