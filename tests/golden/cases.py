"""Golden cases of the official implementation: all in ../shared if there, else the subset in data/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longcat_tune.model.dit import LongCatVideoTransformer

COMMITTED = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "model"
FOLDER = SHARED if SHARED.is_dir() else COMMITTED


@dataclass(frozen=True)
class Case:
    """One line of the manifest with its tensors."""

    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry["name"]

    @property
    def call(self) -> dict[str, Any]:
        return self.entry["call"]

    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / self.entry["file"])

    def model(self, dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
        return build(self.entry["config"], self.call.get("text_tokens_zero_pad", True), dtype)

    def predict(self, model: LongCatVideoTransformer) -> Tensor:
        """What a model answers to a case with text and its mask."""
        tensors = self.tensors()
        with torch.no_grad():
            return model(
                tensors["in.hidden_states"],
                tensors["in.timestep"],
                text_of(tensors),
                tensors["in.encoder_attention_mask"],
                num_cond_latents=self.call["num_cond_latents"],
            )

    def check(self, got: Tensor, expected: Tensor, output: str = "") -> None:
        """Fail unless the tensors agree within the manifest's tolerance."""
        tolerance = self.entry["tolerance"]
        tolerance = tolerance.get("per_output", {}).get(output, tolerance)
        got, expected = got.detach().double(), expected.double()
        assert got.shape == expected.shape, (
            f"{self.name} {output}: {tuple(got.shape)} != {tuple(expected.shape)}"
        )
        difference = (got - expected).abs()
        excess = (difference - tolerance["atol"] - tolerance["rtol"] * expected.abs()).max().item()
        assert excess <= 0, f"{self.name} {output}: off by {difference.max().item():.3e}"
        if "rms" in tolerance:
            rms = difference.square().mean().sqrt().item()
            assert rms <= tolerance["rms"], f"{self.name} {output}: rms {rms:.3e}"


@cache
def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def cases(*kinds: str) -> list[Case]:
    return [Case(entry) for entry in manifest()["cases"] if entry["kind"] in kinds]


def parametrize(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases(*kinds), ids=lambda case: case.name)


def build(config: str, zero_pad: bool, dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
    fields = manifest()["configs"][config]
    model = LongCatVideoTransformer(**fields, text_tokens_zero_pad=zero_pad)
    model.load_state_dict(load_file(FOLDER / manifest()["weights"][config]["file"]), strict=True)
    return model.to(dtype).eval()


def text_of(tensors: dict[str, Tensor], prefix: str = "in.encoder_hidden_states") -> Tensor:
    """Text features without the official singleton axis."""
    return tensors[prefix].squeeze(1)
