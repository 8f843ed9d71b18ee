"""The plan's bytes of a stored layer are those that the formats' libraries make of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longcat_tune.memory.budget_shape import LinearSize, ModelShape
from longcat_tune.memory.host_buffer import HostBuffer
from longcat_tune.memory.quantize import quantizer
from longcat_tune.model.dit import LongCatVideoTransformer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "package"),
    [
        ("int8-quanto", "optimum.quanto"),
        ("fp8-quanto", "optimum.quanto"),
        ("int4-quanto", "optimum.quanto"),
        ("int8-torchao", "torchao"),
        ("fp8-torchao", "torchao"),
    ],
)
def test_a_quantized_layer_takes_what_its_tensors_take_in_a_host_buffer(precision, package):
    pytest.importorskip(package)
    layer = nn.Linear(384, 200, bias=False, dtype=torch.bfloat16)
    made = quantizer(precision, device=CPU, via=CPU, key="base_model_precision")(layer)
    stored = HostBuffer.holding([made.stored()], pinned=False).num_bytes
    assert LinearSize(384, 200).stored_bytes(precision) == stored


def test_the_layers_are_those_of_the_model():
    with torch.device("meta"):
        model = LongCatVideoTransformer(depth=1)
    shape = ModelShape(depth=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            size = shape.linear(name)
            found = (module.in_features, module.out_features, module.bias is not None)
            assert (size.inputs, size.outputs, size.bias) == found, name


def test_a_config_gives_the_shape():
    fields = {
        "hidden_size": 192,
        "depth": 4,
        "num_heads": 3,
        "mlp_ratio": 4,
        "adaln_tembed_dim": 128,
        "frequency_embedding_size": 256,
        "caption_channels": 64,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
    }
    shape = ModelShape.of(fields)
    assert (shape.ffn_size, shape.head_dim, shape.patch_size) == (512, 64, (1, 2, 2))
    assert ModelShape.of(fields | {"hidden_size": 4096, "num_heads": 32}).ffn_size == 11008
