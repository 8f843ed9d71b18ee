"""Where streamed weights are: in their host memory or file, and as many as there are slots on the device."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longcat_tune.errors import UserError
from longcat_tune.memory.frozen import FrozenLinear, freeze_linears
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.streaming import BlockStream, spread_evenly
from tests.memory.toy_blocks import (
    CPU,
    KINDS,
    WIDTH,
    assert_equal,
    step,
    streamed,
    toy_blocks,
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_more_units_than_slots_are_on_the_device_in_forward_and_backward(kind):
    blocks = toy_blocks()
    stream = streamed(blocks, **kind)
    enable_recompute(blocks)
    seen = []
    for layer in blocks.modules():
        if isinstance(layer, FrozenLinear):
            fetch = layer.fetch

            def watched(recording, fetch=fetch, layer=layer):
                fetch(recording)
                slots = {slot.memory.untyped_storage().data_ptr() for slot in stream._slots}
                living = {live.untyped_storage().data_ptr() for live in layers_in_use(blocks)}
                assert living - hosts <= slots
                assert layer.live_weight().untyped_storage().data_ptr() in slots
                seen.append(len(stream.resident_units()))

            layer.fetch = watched
    hosts = {buffer.memory.untyped_storage().data_ptr() for u in stream._units for buffer in u.buffers}
    step(blocks)
    units = len(stream._units)
    assert max(seen) == min(kind["slots"], units)
    assert sum(slot.memory.numel() for slot in stream._slots) == stream.device_bytes
    assert stream.device_bytes == max(seen) * max(unit.num_bytes for unit in stream._units)


def layers_in_use(blocks: nn.ModuleList) -> list[Tensor]:
    return [
        tensor
        for layer in blocks.modules()
        if isinstance(layer, FrozenLinear)
        for tensor in layer._live.values()
    ]


def test_backward_keeps_no_copy_of_a_weight():
    blocks = toy_blocks(2)
    streamed(blocks)
    x = torch.randn(1, 4, WIDTH)
    given = torch.randn(1, WIDTH)
    blocks[1](blocks[0](x, given), given)
    before = {id(one) for one in gc.get_objects() if isinstance(one, Tensor)}
    out = blocks[1](blocks[0](x.clone().requires_grad_(), given), given)
    new = [one for one in gc.get_objects() if isinstance(one, Tensor) and id(one) not in before]
    wide = (2 * WIDTH, WIDTH)
    assert not [one for one in new if tuple(one.shape) in {wide, wide[::-1]}]
    assert out.grad_fn is not None


def test_a_frozen_layer_moves_with_its_module():
    block = toy_blocks(1)[0]
    freeze_linears(block)
    assert block.double().wide(torch.ones(1, WIDTH).double()).dtype == torch.float64


def test_weights_leave_where_they_were_as_soon_as_they_are_streamed():
    blocks = toy_blocks(2)
    originals = [weakref.ref(blocks[number].wide.weight) for number in range(2)]
    streamed(blocks)
    gc.collect()
    assert [original() for original in originals] == [None, None]


def test_only_weights_are_streamed():
    blocks = toy_blocks(2)
    stream = streamed(blocks)
    weights = [layer.weight for layer in blocks.modules() if isinstance(layer, FrozenLinear)]
    assert stream.host_bytes == sum(weight.nbytes for weight in weights)
    hosts = {buffer.memory.untyped_storage().data_ptr() for u in stream._units for buffer in u.buffers}
    there = {name for name, one in blocks.named_parameters() if one.untyped_storage().data_ptr() in hosts}
    assert there == {f"{i}.{name}.weight" for i in range(2) for name in ("wide", "narrow", "island")}


def test_weights_kept_in_a_folder_are_read_from_there(tmp_path: Path):
    blocks = toy_blocks()
    resident = step(copy.deepcopy(blocks))
    stream = streamed(blocks, folder=tmp_path / "weights", group=2)
    enable_recompute(blocks)
    assert_equal(step(blocks), resident)
    assert all(buffer.locked is None for unit in stream._units for buffer in unit.buffers)
    # Nothing has to be cleared away, however the run ends.
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_folder_that_cannot_be_had_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder must be"):
        streamed(toy_blocks(), folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("count", "depth", "numbers"),
    [(1, 48, [24]), (2, 4, [1, 3]), (4, 48, [6, 18, 30, 42]), (3, 4, [0, 2, 3]), (4, 4, [0, 1, 2, 3])],
)
def test_streamed_blocks_are_spread_evenly(count, depth, numbers):
    assert spread_evenly(count, depth) == numbers


def test_every_number_of_blocks_is_spread_over_different_ones():
    for depth in range(1, 49):
        for count in range(depth + 1):
            numbers = spread_evenly(count, depth)
            assert len(set(numbers)) == count
            assert all(0 <= number < depth for number in numbers)


@pytest.mark.parametrize("options", [{"slots": 0}, {"group": 0}, {"by_layer": True, "group": 2}])
def test_impossible_streams_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        BlockStream(device=CPU, **options)
