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
from pathlib import Path

import torch
from torch import Tensor, nn

from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.memory.host_buffer import HostBuffer, Place
from longcat_tune.memory.lanes import Arrival, Lane
from longcat_tune.memory.visit_order import VisitOrder


def spread_evenly(count: int, depth: int) -> list[int]:
    """Numbers of `count` of `depth` blocks, each in the middle of an equal share: its copy has most time."""
    return [(2 * number + 1) * depth // (2 * count) for number in range(count)]


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
    """Layers that travel together: of some blocks, or one alone."""

    layers: list[FrozenLinear] = field(default_factory=list)
    buffers: list[HostBuffer] = field(default_factory=list)
    blocks: int = 0
    slot: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self.buffers)

    @property
    def layout(self) -> tuple[tuple[Place, ...], ...]:
        return tuple(buffer.layout for buffer in self.buffers)


@dataclass(slots=True)
class _Slot:
    """Device memory for one unit; views are made once per layout."""

    memory: Tensor
    unit: int | None = None
    arrivals: list[Arrival] = field(default_factory=list)
    views: dict[tuple[object, ...], list[dict[str, Tensor]]] = field(default_factory=dict)


class BlockStream:
    """Streams the linear weights of the blocks it is given; everything else of them stays on the device.

    Args:
        device: where the blocks compute.
        slots: units on the device at once; with 2 or more the next one is fetched while one computes.
        group: blocks per unit.
        by_layer: every linear layer is a unit by itself; with group 1.
        overlap: page-lock the host memory and copy beside the computation, where the device can.
        folder: keep the weights in files there instead of in host memory.

    Attributes:
        lane: of the copies.

    Raises:
        ValueError: no slot, no block per unit, or a group of blocks by layer.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        slots: int = 2,
        group: int = 1,
        by_layer: bool = False,
        overlap: bool = True,
        folder: Path | None = None,
    ) -> None:
        if slots < 1 or group < 1 or (by_layer and group > 1):
            msg = f"slots ({slots}) and group ({group}) must be at least 1, and group 1 by layer ({by_layer})"
            raise ValueError(msg)
        self.lane = Lane(device, overlap=overlap)
        self._num_slots, self._group, self._by_layer, self._folder = slots, group, by_layer, folder
        self._units: list[_Unit] = []
        self._slots: list[_Slot] = []
        self._order = VisitOrder()
        self._at: int | None = None
        self._fetches = self._waited = self._bytes = 0

    def add(self, block: nn.Module) -> None:
        """Take over the next block in the order of the forward pass; the first use ends the taking.

        Args:
            block: its linear layers are FrozenLinear already, wherever they lie. Their weights move to host
                memory, all else of it to the device.

        Raises:
            UserError: the folder cannot be written to or the disk is full.
        """
        assert not self._slots, "blocks are added before the first is used"
        layers = [one for one in block.modules() if isinstance(one, FrozenLinear)]
        for travelling in [[layer] for layer in layers] if self._by_layer else [layers]:
            self._keep(travelling)
        _move_rest(block, self.lane.device)

    @property
    def counts(self) -> StreamCounts:
        """What was copied so far."""
        return StreamCounts(self._fetches, self._waited, self._bytes)

    @property
    def device_bytes(self) -> int:
        """Device memory that the slots hold once the first block was used, whatever is in them."""
        return min(self._num_slots, len(self._units)) * self._slot_bytes

    @property
    def host_bytes(self) -> int:
        """Host memory, or room on the disk, that the weights hold."""
        return sum(unit.num_bytes for unit in self._units)

    def resident_units(self) -> list[int]:
        """The units on the device now."""
        return sorted(slot.unit for slot in self._slots if slot.unit is not None)

    @property
    def _slot_bytes(self) -> int:
        return max((unit.num_bytes for unit in self._units), default=0)

    def _keep(self, layers: Sequence[FrozenLinear]) -> None:
        """Move the weights of layers into the host's memory and their unit."""
        if self._by_layer or not self._units or self._units[-1].blocks == self._group:
            self._units.append(_Unit())
        unit = self._units[-1]
        buffer = HostBuffer.holding(
            [layer.stored() for layer in layers], pinned=self.lane.overlaps, folder=self._folder
        )
        for layer, tensors in zip(layers, buffer.tensors(), strict=True):
            layer.keep(tensors)
            layer.fetch = partial(self._need, len(self._units) - 1)
        unit.layers += layers
        unit.buffers.append(buffer)
        unit.blocks += 1

    def _need(self, number: int, recording: bool) -> None:
        """Have a unit on the device before its next use, and the following one on its way."""
        if not self._slots:
            self._make_slots()
        unit = self._units[number]
        if unit.slot is None:
            self._waited += 1
            self._fetch(number, self._victim(number))
        elif number == self._at:
            return
        assert unit.slot is not None
        for arrival in self._slots[unit.slot].arrivals:
            self.lane.wait(arrival)
        self._at = number
        following = self._order.visit(number, recording=recording)
        inside = 0 <= following < len(self._units)
        if inside and len(self._slots) > 1 and self._units[following].slot is None:
            self._fetch(following, self._victim(number))

    def _make_slots(self) -> None:
        count, size = min(self._num_slots, len(self._units)), self._slot_bytes
        # The first use may be a render's, and what is made in inference mode cannot be written outside of it.
        with torch.inference_mode(mode=False):
            memories = [torch.empty(size, dtype=torch.uint8, device=self.lane.device) for _ in range(count)]
        for memory in memories:
            self.lane.protect(memory)
        self._slots = [_Slot(memory) for memory in memories]

    def _victim(self, needed: int) -> int:
        """The slot to give up: an empty one, else the one whose unit is farthest from the needed one."""

        def distance(slot: int) -> int:
            unit = self._slots[slot].unit
            return len(self._units) if unit is None else abs(unit - needed)

        return max(range(len(self._slots)), key=distance)

    def _fetch(self, number: int, slot_number: int) -> None:
        """Copy a unit into a slot; until all of it is on its way, neither is said to hold the other."""
        unit, slot = self._units[number], self._slots[slot_number]
        if slot.unit is not None:
            evicted, slot.unit = self._units[slot.unit], None
            evicted.slot = None
            for layer in evicted.layers:
                layer.use(layer.stored())
        arrivals, end = [], 0
        for buffer in unit.buffers:
            arrivals.append(self.lane.copy(slot.memory[end:], buffer.memory))
            end += buffer.num_bytes
        for layer, tensors in zip(unit.layers, self._views(unit, slot), strict=True):
            layer.use(tensors)
        slot.arrivals = arrivals
        slot.unit, unit.slot = number, slot_number
        self._fetches += 1
        self._bytes += end

    def _views(self, unit: _Unit, slot: _Slot) -> list[dict[str, Tensor]]:
        """The tensors of a unit's layers in a slot."""
        layout = unit.layout
        if layout not in slot.views:
            ends, views = 0, []
            for buffer in unit.buffers:
                views += buffer.views(slot.memory[ends:])
                ends += buffer.num_bytes
            slot.views[layout] = views
        return slot.views[layout]


def _move_rest(block: nn.Module, device: torch.device) -> None:
    """Move what is not streamed: norms, biases and their like."""
    for module in block.modules():
        streamed = module.stored().keys() if isinstance(module, FrozenLinear) else ()
        for name, parameter in list(module.named_parameters(recurse=False)):
            if name not in streamed:
                moved = nn.Parameter(parameter.to(device), requires_grad=parameter.requires_grad)
                module.register_parameter(name, moved)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name not in streamed:
                module.register_buffer(name, buffer.to(device))
