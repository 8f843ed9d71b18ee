"""What a check should plan for: a device that is free, else what a busy one has when its job is over.

Knows nothing of configs.
"""

from __future__ import annotations

import subprocess

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
    return Conditions((*host, *_card_option(device)), device.environment, busy=True)


def _card_option(device: Device) -> tuple[str, ...]:
    if device.number is None:
        return ()
    try:
        asked = subprocess.run(
            [*MEMORY_QUERY, device.id], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    size = asked.stdout.strip()
    return ("--device-memory", f"{size}MiB") if size.isdigit() else ()
