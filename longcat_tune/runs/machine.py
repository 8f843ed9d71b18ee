"""What the machine has to give to a run, or another machine that is only named by its sizes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from longcat_tune.errors import ConfigError
from longcat_tune.memory.budget import GIB, Capacity
from longcat_tune.memory.budget_time import CARDS, Rates, rates_of
from longcat_tune.memory.budget_training import CONTEXT
from longcat_tune.runs.build import pick_device
from longcat_tune.training.process_memory import bytes_in_table, host_bytes

IMPORTS = {"cpu": int(0.52 * GIB), "mps": int(0.8 * GIB), "cuda": int(3.0 * GIB)}
"""Host memory of Python with all libraries, by kind of device. cpu: a step on the miniature takes 0.49 GiB, a
whole run 0.56; the others: typical, not measured."""

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MEMINFO = Path("/proc/meminfo")
UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan is made for.

    Attributes:
        name: of the device.
        capacity: free memory.
        rates: of the device; None when they are not known, or it is a CPU.
        imports_bytes: of host memory that Python and its libraries take.
    """

    name: str
    capacity: Capacity
    rates: Rates | None
    imports_bytes: int


def this_machine() -> Machine:
    """The fastest device here and what is free now, of it and of the host's memory."""
    device = pick_device()
    imports = max(IMPORTS[device.type], host_bytes())
    host = _free_host_bytes()
    if device.type != "cuda":
        return Machine(device.type, Capacity(None, host), None, imports)
    free, _ = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return Machine(name, Capacity(free, host), rates_of(name), imports)


@dataclass(frozen=True, slots=True)
class OtherMachine:
    """What a user says of a machine that a run is planned for; what is not said is as here.

    Attributes:
        device_memory: of its card, all of it; `24GiB`.
        host_memory: that the run may use.
        device_name: of its card, for seconds per step; one of CARDS.
    """

    device_memory: str | None = None
    host_memory: str | None = None
    device_name: str | None = None


THIS_MACHINE = OtherMachine()


def planned_machine(machine: Machine, other: OtherMachine) -> Machine:
    """Put what is known of another machine in the place of what is here.

    Args:
        machine: this one.
        other: what was said.

    Raises:
        ConfigError: a size cannot be read, or a name is not known.
    """
    name, capacity, rates, imports = machine.name, machine.capacity, machine.rates, machine.imports_bytes
    if other.device_memory is not None:
        card = max(0, parse_size("--device-memory", other.device_memory) - CONTEXT)
        name, rates = f"a card of {other.device_memory}", None
        capacity, imports = Capacity(card, capacity.host), IMPORTS["cuda"]
    if other.host_memory is not None:
        capacity = Capacity(capacity.device, parse_size("--host-memory", other.host_memory))
    if other.device_name is not None:
        name, rates = other.device_name, rates_of(other.device_name)
        if rates is None:
            names = ", ".join(CARDS)
            raise ConfigError(f"--device-name ({name}) must be one of {names}; or leave it out")
    return Machine(name, capacity, rates, imports)


def parse_size(option: str, text: str) -> int:
    """Read a size in bytes, such as `24GiB`, `24G` or `64000MB`.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in UNITS or found[1].count(".") > 1 or not found[1].strip("."):
        msg = f"{option} ({text}) must be a size in bytes; write it like 24GiB or 24GB"
        raise ConfigError(msg)
    return int(float(found[1]) * UNITS[found[2]])


def _free_host_bytes() -> int:
    """Free memory, and what this process holds already; shared by the processes of one machine."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = bytes_in_table(MEMINFO, "MemAvailable")
    free = physical if available is None else available + host_bytes()
    for path in CGROUP_LIMITS:
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            free = min(free, int(limit))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
