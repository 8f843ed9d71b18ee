"""The transformer as a run holds it: every key of where its weights lie arrives, and all else computes there.

The meta device stands for an accelerator: it has no data, but a tensor of the host among its own is an error.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError, DeviceError, UserError
from longcat_tune.memory.frozen import FrozenLinear
from longcat_tune.model.attention import math_attention, sdpa_attention
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.runs.build import find_checkpoint, require_transformer
from longcat_tune.runs.parts import model_with_adapter
from longcat_tune.runs.transformer import Base, build_base
from tests.builders import make_run

CPU = torch.device("cpu")
META = torch.device("meta")
LAYERS_OF_A_BLOCK = 9


def config_of(**keys: Any) -> RunConfig:
    sections = {
        name: {key: value for key, value in keys.items() if key in section.annotation.model_fields}
        for name, section in RunConfig.model_fields.items()
    }
    sections["model"]["model_flavour"] = "tiny"
    return RunConfig.model_validate(sections)


def base(device: torch.device = CPU, **keys: Any) -> Base:
    config = config_of(**keys)
    return build_base(config, find_checkpoint(config.model).transformer, device=device, trains=True)


def streamed_blocks(model: LongCatVideoTransformer) -> list[int]:
    return [
        number
        for number, block in enumerate(model.blocks)
        if any(isinstance(one, FrozenLinear) and one.fetch is not None for one in block.modules())
    ]


@pytest.mark.parametrize(("name", "function"), [("math", math_attention), ("auto", sdpa_attention)])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_transformer_gets_its_attention_and_dtype(name, function, precision, dtype, caplog) -> None:
    with caplog.at_level(logging.INFO):
        model = base(attention_implementation=name, base_model_precision=precision).model
    assert {block.attn.attend for block in model.blocks} == {function}
    assert {block.cross_attn.attend for block in model.blocks} == {function}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert [record.getMessage() for record in caplog.records if "Attention:" in record.getMessage()]


@pytest.mark.parametrize(
    ("keys", "blocks", "units", "slots"),
    [
        ({}, [], 0, 0),
        ({"musubi_blocks_to_swap": 1}, [2], 1, 1),
        ({"musubi_blocks_to_swap": 2}, [1, 3], 2, 2),
        ({"musubi_blocks_to_swap": 4}, [0, 1, 2, 3], 4, 2),
        # More than there are: a config for the released model can be tried on the miniature.
        ({"musubi_blocks_to_swap": 48}, [0, 1, 2, 3], 4, 2),
        ({"enable_group_offload": True}, [0, 1, 2, 3], 4, 2),
        ({"enable_group_offload": True, "group_offload_blocks_per_group": 3}, [0, 1, 2, 3], 2, 2),
        ({"enable_group_offload": True, "group_offload_use_stream": False}, [0, 1, 2, 3], 4, 1),
        (
            {"enable_group_offload": True, "group_offload_type": "leaf_level"},
            [0, 1, 2, 3],
            4 * LAYERS_OF_A_BLOCK,
            2,
        ),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "int8-quanto"])
def test_the_blocks_that_the_keys_name_are_streamed(keys, blocks, units, slots, precision) -> None:
    if precision == "int8-quanto":
        pytest.importorskip("optimum.quanto")
    built = base(base_model_precision=precision, **keys)
    assert streamed_blocks(built.model) == blocks
    if built.stream is None:
        assert not units
        return
    assert len(built.stream._units) == units
    assert built.stream.device_bytes == slots * max(unit.num_bytes for unit in built.stream._units)


def test_a_device_that_could_overlap_copies_is_told_whether_to(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def watched(*, device: torch.device, overlap: bool = True, **_: Any) -> None:
        given.append(overlap)
        raise KeyboardInterrupt

    monkeypatch.setattr("longcat_tune.runs.transformer.BlockStream", watched)
    for ahead in (True, False):
        with pytest.raises(KeyboardInterrupt):
            base(enable_group_offload=True, group_offload_use_stream=ahead)
    assert given == [True, False]


def test_weights_can_lie_on_the_disk(tmp_path: Path) -> None:
    stream = base(enable_group_offload=True, group_offload_to_disk_path=tmp_path / "weights").stream
    assert all(buffer.locked is None for unit in stream._units for buffer in unit.buffers)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .* a file stands where a folder must be"):
        base(enable_group_offload=True, group_offload_to_disk_path=tmp_path / "file")


def test_the_feed_forward_gets_its_chunks() -> None:
    assert base().model.ffn_chunk_tokens is None
    assert base(feed_forward_chunk_size=512).model.ffn_chunk_tokens == 512


STREAMING = [
    {"musubi_blocks_to_swap": 2},
    {"enable_group_offload": True},
    {"enable_group_offload": True, "group_offload_type": "leaf_level"},
]


@pytest.mark.parametrize("streaming", STREAMING, ids=str)
@pytest.mark.parametrize("precision", ["bf16", "int8-quanto"])
@pytest.mark.parametrize("dora", [False, True])
def test_only_streamed_weights_are_on_the_host_and_none_computes_there(
    tmp_path: Path, streaming: dict, precision: str, dora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device knows none.
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_keys: nullcontext())
    if precision == "int8-quanto":
        pytest.importorskip("optimum.quanto")
    keys = {"lora_target": "all-linear", "base_model_precision": precision, "use_dora": dora}
    config = make_run(tmp_path, [], mixed_precision="no", **keys, **streaming)
    folder = find_checkpoint(config.model).transformer
    adapter = require_transformer(config.lora, folder, config_dir=tmp_path)
    model = model_with_adapter(config, folder, adapter, device=META)
    streamed = {
        id(tensor)
        for layer in model.modules()
        if isinstance(layer, FrozenLinear) and layer.fetch is not None
        for tensor in layer.stored().values()
    }
    assert streamed
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.device == (CPU if id(tensor) in streamed else META)
    inputs = torch.zeros(1, 16, 3, 8, 8, device=META), torch.zeros(1, device=META)
    text = torch.zeros(1, 4, model.caption_channels, device=META)
    model(*inputs, text).square().mean().backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None and weight.grad.device == META for weight in trained)


def test_the_magnitudes_of_a_dora_are_those_of_the_weights_that_compute(tmp_path: Path) -> None:
    pytest.importorskip("optimum.quanto")
    keys = {"base_model_precision": "int8-quanto", "enable_group_offload": True, "use_dora": True}
    config = make_run(tmp_path, [], **keys)
    folder = find_checkpoint(config.model).transformer
    adapter = require_transformer(config.lora, folder, config_dir=tmp_path)
    layer = model_with_adapter(config, folder, adapter, device=CPU).blocks[2].attn.qkv
    dense = layer.get_base_layer()(torch.eye(192, dtype=torch.bfloat16)) - layer.get_base_layer().bias
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, dense.float().norm(dim=0), rtol=5e-3, atol=1e-4)


def test_a_device_without_room_for_the_transformer_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_keys: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("longcat_tune.runs.transformer.load_transformer", full)
    with pytest.raises(DeviceError, match="out of memory in loading the transformer"):
        base()


def test_an_attention_kernel_that_is_not_there_is_told_before_weights_are_read(monkeypatch) -> None:
    monkeypatch.setattr("longcat_tune.runs.transformer.load_transformer", None)
    with pytest.raises((ConfigError, DeviceError), match=r"attention_implementation \(flash\)"):
        base(attention_implementation="flash")


def test_the_rest_of_a_run_finds_plain_layers_where_nothing_is_streamed() -> None:
    model = base().model
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())
    assert isinstance(model.blocks[0].attn.qkv, nn.Linear)


@pytest.mark.parametrize("keys", [{"musubi_blocks_to_swap": 1}, {"base_model_precision": "int8-quanto"}])
def test_a_base_that_is_shared_out_over_processes_must_be_plain_and_on_the_device(
    keys: dict[str, Any],
) -> None:
    if "base_model_precision" in keys:
        pytest.importorskip("optimum.quanto")
    config = config_of(**keys)
    folder = find_checkpoint(config.model).transformer
    with pytest.raises(ConfigError, match=r"needs plain weights on the device.*--use_fsdp"):
        build_base(config, folder, device=CPU, trains=True, sharded=True)
