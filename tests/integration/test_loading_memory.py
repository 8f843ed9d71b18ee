"""Loading holds the final form, one block and little more: a billion parameters, in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat_tune.model.weights import INDEX_NAME, empty_transformer

CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 4096,
    "depth": 4,
    "num_heads": 32,
    "caption_channels": 256,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
}
SHARDS = 3
BF16 = 2
RANDOM_NUMBERS = 4096
"""At the start of each tensor; the rest of the file is a hole, which takes no time to write."""
SLACK_BYTES = 200_000_000

LOADS = """
import sys
from pathlib import Path
import torch
from longcat_tune.config.model import ModelSection
from longcat_tune.memory.streaming import BlockStream
from longcat_tune.model.weights import load_transformer
from longcat_tune.runs.precision import base_weights
from torch import nn

def now(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

cpu = torch.device("cpu")
weights = base_weights(ModelSection(base_model_precision="int8-quanto"), cpu)
weights.freeze(nn.ModuleList([nn.Linear(8, 8)]))
stream = BlockStream(device=cpu)

def prepare(number, block):
    weights.freeze(block)
    stream.add(block)

before = now("VmRSS")
model = load_transformer(Path(sys.argv[1]), dtype=weights.dtype, device=cpu, prepare_block=prepare)
kept = {id(tensor): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
print(now("VmHWM") - before, sum(kept.values()), stream.host_bytes)
"""
"""Prints by how much the process grew at most, and the bytes of the model and of its streamed part."""


def write_sparse_checkpoint(folder: Path) -> dict[str, int]:
    """Shards as the release has them; returns the numbers of elements by name."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {name: list(tensor.shape) for name, tensor in empty_transformer(folder).state_dict().items()}
    names = sorted(shapes)
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        file = f"diffusion_pytorch_model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        members = names[number::SHARDS]
        weight_map |= dict.fromkeys(members, file)
        write_sparse_shard(folder / file, {name: shapes[name] for name in members})
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return {name: math.prod(shape) for name, shape in shapes.items()}


def write_sparse_shard(path: Path, shapes: dict[str, list[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * BF16
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = torch.randn(RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)).bfloat16()
    some = numbers.view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for entry in header.values():
            first, last = entry["data_offsets"]
            file.seek(start + first)
            file.write(some[: last - first])
        file.truncate(start + end)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_streamed_int8_model_is_loaded_within_its_final_form_one_block_and_200_mb(tmp_path: Path) -> None:
    sizes = write_sparse_checkpoint(tmp_path)
    assert sum(sizes.values()) > 1_000_000_000
    block_bytes = BF16 * sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    grown, kept, streamed = map(int, done.stdout.split())
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert kept < 1.2 * sum(sizes.values()), "the linear layers are not in 8 bits"
    assert streamed > 0.85 * sum(sizes.values())
    assert grown < kept + block_bytes + SLACK_BYTES, f"{grown} bytes for {kept} and a block of {block_bytes}"
