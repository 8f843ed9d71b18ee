"""What the plan predicts of host memory is what a training step reaches, weights loaded from a checkpoint.

Each case runs in a process of its own, as the peak of a process only grows. No accelerator: all of a run's
memory is the host's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longcat_tune.model.weights import WEIGHTS_NAME, empty_transformer

CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 2048,
    "depth": 4,
    "num_heads": 16,
    "caption_channels": 64,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
}
"""290 M parameters: 0.6 GB in bf16, as much as Python and its libraries take."""

SCRIPT = Path(__file__).parent / "memory_step.py"
SHORT = {"width": 64, "height": 64, "num_frames": 9}
LONG = {"width": 160, "height": 160, "num_frames": 9}
"""A block's input is a megabyte here: smaller ones stay on the device."""

GIVES_BACK = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""Without it glibc keeps freed memory in pieces of up to 32 MiB: hundreds of MB that no one needs."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "dit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {name: tensor.shape for name, tensor in empty_transformer(folder).state_dict().items()}
    weights = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(weights, folder / WEIGHTS_NAME)
    return folder


def peaks(checkpoint: Path, size: dict[str, int], keys: dict[str, Any]) -> dict[str, int]:
    values = {
        key: json.dumps(value) if isinstance(value, bool) else str(value) for key, value in keys.items()
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(checkpoint), json.dumps(values), json.dumps(size)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | GIVES_BACK | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of other systems count other things")
@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({}, SHORT),
        ({"base_model_precision": "int8-quanto", "musubi_blocks_to_swap": 4}, SHORT),
        (
            {"musubi_blocks_to_swap": 3, "gradient_checkpointing_offload": True, "lora_rank": 128},
            LONG,
        ),
    ],
)
def test_the_host_s_peak_is_predicted_within_a_tenth(
    checkpoint: Path, keys: dict[str, Any], size: dict[str, int]
) -> None:
    found = peaks(checkpoint, size, keys)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
    assert found["measured"] > 1.6 * found["imports"]
