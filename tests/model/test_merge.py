"""Merging into weights gives what the LoRA computes beside them, rounded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from longcat_tune.checkpoint.lora_file import LORA_FILES, LoraWeights, read_lora, write_lora
from longcat_tune.checkpoint.lora_writer import OfficialChoices
from longcat_tune.model.lora import load_lora
from longcat_tune.model.merge import merged_weight, row_norms, weight_change
from tests.golden.cases import FOLDER, Case, parametrize


def merge_into(model: nn.Module, lora: LoraWeights, strength: float) -> None:
    for name, update in lora.updates():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        change = weight_change(module.weight, update.down, update.up, update.scale, strength=strength)
        module.weight.data = merged_weight(module.weight, [change]).data


@parametrize("lora")
def test_merged_golden_files_give_the_official_numbers(case: Case) -> None:
    """Merged and run time differ by 3e-6 in the official code."""
    expected, lora = case.tensors(), read_lora(FOLDER / case.call["lora_file"])
    for strength in (1.0, 0.6):
        merged, running = case.model(), case.model()
        merge_into(merged, lora, strength)
        load_lora(running, lora.weights, {name: strength * alpha for name, alpha in lora.alphas.items()})
        got = case.predict(merged)
        case.check(got, expected[f"out.mult_{strength}"], f"out.mult_{strength}")
        assert (got - case.predict(running)).abs().max() < 3e-6


@parametrize("lora")
@pytest.mark.parametrize("form", LORA_FILES)
def test_golden_files_give_the_official_numbers_from_every_format(
    tmp_path: Path, case: Case, form: str
) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, read_lora(FOLDER / case.call["lora_file"]), form)
    lora, model = read_lora(path), case.model()
    load_lora(model, lora.weights, lora.alphas)
    case.check(case.predict(model), case.tensors()["out.mult_1.0"], "out.mult_1.0")


@parametrize("lora")
def test_golden_files_written_again_hold_the_same_tensors(tmp_path: Path, case: Case) -> None:
    source = FOLDER / case.call["lora_file"]
    theirs = load_file(source)
    separate = any(".blocks.0.weight" in key for key in theirs)
    write_lora(tmp_path / "x", read_lora(source), "official", OfficialChoices(separate=separate))
    ours = load_file(tmp_path / "x")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def matrices() -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    shapes = ((12, 8), (3, 8), (12, 3))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def test_several_changes_are_added_before_rounding_once() -> None:
    weight, down, up = matrices()
    weight = weight.bfloat16()
    change = weight_change(weight, 1e-3 * down, up, 0.5)
    merged = merged_weight(weight, [change] * 40)
    assert merged.dtype == torch.bfloat16
    exact = weight.double() + 40 * 0.5e-3 * up.double() @ down.double()
    assert torch.equal(merged, exact.bfloat16())
    one_by_one = weight
    for _ in range(40):
        one_by_one = merged_weight(one_by_one, [change])
    assert not torch.equal(one_by_one, merged)


def test_a_dora_brings_rows_to_their_magnitudes() -> None:
    weight, down, up = matrices()
    magnitude = torch.linspace(0.5, 2, 12)
    changed = weight + weight_change(weight, down, up, 0.5, magnitude=magnitude)
    torch.testing.assert_close(changed.norm(dim=1), magnitude)
    directions = nn.functional.normalize(weight + 0.5 * up @ down, dim=1)
    torch.testing.assert_close(nn.functional.normalize(changed, dim=1), directions)
    torch.testing.assert_close(row_norms(weight, down, up, 0.5), (weight + 0.5 * up @ down).norm(dim=1))
    unchanged = weight_change(weight, down, 0 * up, 0.5, magnitude=weight.norm(dim=1))
    torch.testing.assert_close(unchanged, torch.zeros_like(weight), atol=1e-6, rtol=0)
