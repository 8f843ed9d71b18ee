"""Training on the miniature with block-sparse attention, whose chunk is reduced to make blocks."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longcat_tune.checkpoint.lora_file import LORA_FILE
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs.train import train
from tests.builders import make_clips, make_run, video_entry


def with_small_blocks(folder: Path) -> Path:
    """The miniature's transformer with 2 x 2 x 2 tokens to a block, a quarter of the blocks kept."""
    source = resolve_checkpoint(None, flavour="tiny") / "dit"
    shutil.copytree(source, folder / "dit")
    path = folder / "dit" / "config.json"
    content = json.loads(path.read_text())
    chunk = [2, 2, 2]
    content["bsa_params"] = {"sparsity": 0.75, "chunk_3d_shape_q": chunk, "chunk_3d_shape_k": chunk}
    path.write_text(json.dumps(content))
    return folder


def trained(folder: Path, **keys: Any) -> dict[str, Tensor]:
    clips = make_clips(folder / "clips", count=1, size=(128, 128))
    config = make_run(
        folder,
        [video_entry(clips)],
        resolution=128,
        pretrained_transformer_model_name_or_path=str(with_small_blocks(folder / "checkpoint")),
        max_train_steps=3,
        gradient_checkpointing=True,
        lora_rank=4,
        seed=5,
        **keys,
    )
    train(config, config_dir=folder)
    return load_file(config.output.output_dir / LORA_FILE)


def test_a_run_trains_sparsely_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        sparse = trained(tmp_path / "sparse", attention_implementation="block_sparse")
    told = [message for message in caplog.messages if "ttention" in message]
    assert sum("block-sparse for moving clips, else sdpa" in message for message in told) == 1
    assert sum("of 8 x 8 tokens: block-sparse, 8 of 32 key blocks" in message for message in told) == 1
    again = trained(tmp_path / "again", attention_implementation="block_sparse")
    assert all(torch.equal(tensor, again[name]) for name, tensor in sparse.items())
    dense = trained(tmp_path / "dense")
    assert any(not torch.equal(tensor, dense[name]) for name, tensor in sparse.items())
