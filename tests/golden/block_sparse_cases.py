"""Golden cases of block-sparse attention: all in ../shared if there, else the committed subset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

COMMITTED = Path(__file__).parent / "block_sparse"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "block_sparse"
FOLDER = SHARED if SHARED.is_dir() else COMMITTED
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
SMALL = {entry["file"] for entry in json.loads((COMMITTED / "manifest.json").read_text())["cases"]}


@dataclass(frozen=True)
class BlockSparseCase:
    """One line of the manifest."""

    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry["file"].removesuffix(".safetensors")

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.entry[name]) for name in ("grid_q", "grid_k", "chunk_q", "chunk_k")}

    @property
    def rule(self) -> dict[str, float | None]:
        return {name: self.entry[name] for name in ("sparsity", "cdf_threshold")}

    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / self.entry["file"])

    def check(self, got: dict[str, Tensor], precision: str) -> None:
        """Fail unless every tensor is within the manifest's relative Frobenius error."""
        expected, tolerance = self.tensors(), MANIFEST["tolerances"][precision]
        for name, tensor in got.items():
            bound = tolerance["out" if name == "out" else "grads"]
            right = expected[name].double()
            error = ((tensor.detach().double() - right).norm() / right.norm()).item()
            assert error <= bound, f"{self.name} {precision} {name}: {error:.1e} > {bound:.1e}"

    def check_lse(self, got: Tensor, precision: str) -> None:
        """Fail unless finite entries agree and empty rows are -inf in both."""
        right = self.tensors()["lse"].double()
        finite = right.isfinite()
        assert torch.equal(got.isfinite(), finite)
        error = (got.double() - right)[finite].abs().max().item()
        bound = MANIFEST["tolerances"][precision]["lse"]
        assert error <= bound, f"{self.name} {precision} lse: {error:.1e} > {bound:.1e}"


CASES = [BlockSparseCase(entry) for entry in MANIFEST["cases"]]
