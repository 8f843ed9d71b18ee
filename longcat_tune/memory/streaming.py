"""Frozen blocks that live in host memory and visit the device one after another.

Weights go one way: host to a ring of slots on the device; eviction is forgetting the pointer. The layers
themselves say when they need their weight, in forward, recompute and backward alike, so nothing here depends
on how a step is made: a wrong guess about what comes next costs time, never a wrong number. Sees lists of
blocks, never LongCat. Source of the scheme: one-way rings as in kohya-ss/musubi-tuner, without its exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.host_buffer import HostBuffer
from longcat_tune.memory.lanes import Arrival, Lane


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What a stream has done.

    Attributes:
        fetches: units copied to the device.
        waited: fetches that were only asked for when they were needed already.
        bytes: copied.
    """

    fetches: int
    waited: int
    bytes: int


@dataclass(slots=True)
class _Unit:
    """Blocks that travel together, and the layers in them."""

    layers: list[FrozenLinear]
    buffer: HostBuffer
    slot: int | None = None


@dataclass(slots=True)
class _Slot:
    """Device memory for one unit; views are made once per layout."""

    memory: Tensor
    unit: int | None = None
    arrival: Arrival = None
    views: dict[tuple[object, ...], list[dict[str, Tensor]]] = field(default_factory=dict)


class BlockStream:
    """Streams the linear weights of some blocks; everything else of them stays on the device.

    Args:
        blocks: the blocks that are streamed, in the order of the forward pass; their linear layers are
            FrozenLinear already. Their weights are moved to host memory here, block by block.
        device: where they compute.
        slots: units on the device at once, at least 2, so that one is fetched while another computes.
        group: blocks per unit.

    Raises:
        ValueError: fewer than 2 slots or 1 block per unit.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, device: torch.device, slots: int = 2, group: int = 1
    ) -> None:
        if slots < 2 or group < 1:
            msg = f"slots ({slots}) must be at least 2 and group ({group}) at least 1"
            raise ValueError(msg)
        self._lane = Lane(device)
        self._units = [
            self._unit(blocks[start : start + group], number)
            for number, start in enumerate(range(0, len(blocks), group))
        ]
        size = max((unit.buffer.num_bytes for unit in self._units), default=0)
        self._slots = [
            _Slot(torch.empty(size, dtype=torch.uint8, device=device))
            for _ in range(min(slots, len(self._units)))
        ]
        self._at = -1
        self._fetches = self._waited = self._bytes = 0

    @property
    def counts(self) -> StreamCounts:
        """What was copied so far."""
        return StreamCounts(self._fetches, self._waited, self._bytes)

    @property
    def device_bytes(self) -> int:
        """Device memory that the slots hold, whatever is in them."""
        return sum(slot.memory.numel() for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        """Host memory that the weights hold."""
        return sum(unit.buffer.num_bytes for unit in self._units)

    def resident_units(self) -> list[int]:
        """The units on the device now."""
        return sorted(slot.unit for slot in self._slots if slot.unit is not None)

    def _unit(self, blocks: Sequence[nn.Module], number: int) -> _Unit:
        layers = [one for block in blocks for one in block.modules() if isinstance(one, FrozenLinear)]
        buffer = HostBuffer.holding([layer.stored() for layer in layers], pinned=self._lane.overlaps)
        for layer, tensors in zip(layers, buffer.tensors(), strict=True):
            layer.keep(tensors)
            layer.fetch = partial(self._need, number)
        return _Unit(layers, buffer)

    def _need(self, number: int, recording: bool) -> None:
        """Have a unit on the device before its next use, and the following one on its way."""
        unit = self._units[number]
        if unit.slot is None:
            self._waited += 1
            self._fetch(number, self._victim(number))
        elif number == self._at:
            return
        assert unit.slot is not None
        self._lane.wait(self._slots[unit.slot].arrival)
        # From the last unit to the first is no backward pass, but the next forward pass.
        begins_anew = number == 0 and self._at == len(self._units) - 1
        backwards = number < self._at and not begins_anew
        self._at = number
        following = self._following(number, backwards=backwards, recording=recording)
        if following is not None and self._units[following].slot is None:
            self._fetch(following, self._victim(number))

    def _following(self, number: int, *, backwards: bool, recording: bool) -> int | None:
        """The unit that will be needed next, as far as one can tell."""
        last = len(self._units) - 1
        if number == last:
            # The backward pass begins where the forward pass ends; without a graph the next one begins anew.
            return None if recording or backwards else 0
        if backwards and number:
            return number - 1
        return None if backwards else number + 1

    def _victim(self, needed: int) -> int:
        """The slot to give up: an empty one, else the one whose unit is farthest from the needed one."""

        def distance(slot: int) -> int:
            unit = self._slots[slot].unit
            return len(self._units) if unit is None else abs(unit - needed)

        return max(
            (slot for slot in range(len(self._slots)) if self._slots[slot].unit != needed), key=distance
        )

    def _fetch(self, number: int, slot_number: int) -> None:
        unit, slot = self._units[number], self._slots[slot_number]
        if slot.unit is not None:
            self._units[slot.unit].slot = None
        slot.arrival = self._lane.copy(slot.memory, unit.buffer.memory)
        slot.unit, unit.slot = number, slot_number
        if unit.buffer.layout not in slot.views:
            slot.views[unit.buffer.layout] = unit.buffer.views(slot.memory)
        for layer, tensors in zip(unit.layers, slot.views[unit.buffer.layout], strict=True):
            layer.use(tensors)
        self._fetches += 1
        self._bytes += unit.buffer.num_bytes
