"""What jobs can run on: the cards that nvidia-smi lists, else the machine itself as one device.

Asks no torch: importing it takes seconds and memory on the card.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longcat_tune.server.replies import Refusal

VISIBLE = "CUDA_VISIBLE_DEVICES"
LISTING = ("nvidia-smi", "-L")
PATIENCE = 20.0
"""Seconds: the driver of a machine with many cards takes some to wake up."""

CARD = re.compile(r"GPU (\d+): (.+) \(UUID: (GPU-[0-9A-Za-z-]+)\)")
SHARE = re.compile(r"\s+MIG (.+?)\s+Device\s+\d+: \(UUID: (MIG-[0-9A-Za-z/-]+)\)")


@dataclass(frozen=True, slots=True)
class Device:
    """One place where a job can run.

    Attributes:
        id: the card's UUID, as its number depends on who counts; `cpu` without cards.
        name: as the user sees it.
        number: of the card, from 0; None without cards.
    """

    id: str
    name: str
    number: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be given to see only this one.

        Without nvidia-smi nothing is hidden: there may be an accelerator that it does not list.
        """
        return {} if self.number is None else {VISIBLE: self.id}


MACHINE = Device("cpu", "cpu")


def find_devices(
    environment: Mapping[str, str] = os.environ, command: Sequence[str] = LISTING
) -> tuple[Device, ...]:
    """All devices that jobs may use; at least one.

    Args:
        environment: of this process; a CUDA_VISIBLE_DEVICES in it holds for jobs too.
        command: lists the cards.
    """
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (MACHINE,)
    cards = parse_listing(asked.stdout) if asked.returncode == 0 else ()
    return _allowed(cards, environment.get(VISIBLE)) or (MACHINE,)


def parse_listing(text: str) -> tuple[Device, ...]:
    """Read what nvidia-smi -L prints; a card that is divided is given as its shares.

    Args:
        text: one line per card, and an indented one per share of it.
    """
    found: list[Device] = []
    number, card = -1, ""
    for line in text.splitlines():
        if match := CARD.match(line):
            number, card = int(match[1]), match[2]
            found.append(Device(match[3], f"GPU {number}: {card}", number))
        elif match := SHARE.match(line):
            if found and found[-1].id.startswith("GPU-"):
                found.pop()
            found.append(Device(match[2], f"GPU {number}: {card} MIG {match[1]}", number))
    return tuple(found)


def pick(devices: Sequence[Device], wanted: str) -> str:
    """The id itself, of a device that there is.

    Raises:
        Refusal: there is no such device.
    """
    known = [one.id for one in devices]
    if wanted not in known:
        raise Refusal(400, "runs.no_such_device", name=wanted[:80], known=", ".join(known))
    return wanted


def _allowed(cards: Sequence[Device], visible: str | None) -> tuple[Device, ...]:
    if visible is None:
        return tuple(cards)
    named = [one.strip() for one in visible.split(",")]
    return tuple(card for card in cards if str(card.number) in named or card.id in named)
