"""The key compile reaches the transformer."""

from __future__ import annotations

from pathlib import Path

import torch

from longcat_tune.model import compilation
from longcat_tune.model.elementwise import LEAN
from longcat_tune.runs.build import find_checkpoint
from longcat_tune.runs.transformer import build_base
from tests.builders import make_run

CPU = torch.device("cpu")


def test_formulas_are_compiled_when_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "_trouble", lambda _device: None)
    for word, is_lean in (("auto", True), ("false", True), ("true", False)):
        config = make_run(tmp_path, [], compile=word)
        folder = find_checkpoint(config.model).transformer
        base = build_base(config, folder, device=CPU, trains=True)
        assert (base.model.elementwise is LEAN) == is_lean
