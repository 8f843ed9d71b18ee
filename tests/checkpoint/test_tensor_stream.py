"""Files written tensor by tensor are what the safetensors library reads, and say what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat_tune.checkpoint.tensor_stream import (
    DTYPE_NAMES,
    Layout,
    in_order,
    read_layouts,
    write_tensor_stream,
)


def of_every_kind() -> dict[str, Tensor]:
    """Odd sizes, so that a wrong order would leave numbers where their size does not divide the offset."""
    tensors = {
        f"{number}.{name}": torch.arange(3 + number % 2).to(dtype)
        for number, (dtype, name) in enumerate(reversed(DTYPE_NAMES.items()))
    }
    return tensors | {
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).mT,
    }


def test_the_library_reads_every_kind_of_number_back(tmp_path: Path) -> None:
    tensors = of_every_kind()
    layouts = in_order({name: Layout.of(tensor) for name, tensor in tensors.items()})
    path = tmp_path / "x.safetensors"
    write_tensor_stream(path, layouts, ((name, tensors[name]) for name in layouts), {"about": "é"})
    back = load_file(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].double(), tensor.double())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"about": "é"}
    assert read_layouts(path) == layouts
    offset = int.from_bytes(path.read_bytes()[:8], "little") + 8
    for layout in layouts.values():
        assert offset % layout.dtype.itemsize == 0
        offset += layout.num_bytes
    assert offset == path.stat().st_size


def test_layouts_are_read_from_a_file_of_the_library(tmp_path: Path) -> None:
    tensors = of_every_kind()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    expected = {name: Layout.of(tensor) for name, tensor in tensors.items()}
    assert read_layouts(tmp_path / "x.safetensors") == expected


@pytest.mark.parametrize(
    "given", [("b", torch.zeros(2)), ("a", torch.zeros(3)), ("a", torch.zeros(2).half())]
)
def test_another_tensor_than_announced_is_a_bug(tmp_path: Path, given: tuple[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="was announced as a"):
        write_tensor_stream(tmp_path / "x", {"a": Layout.of(torch.zeros(2))}, [given], {})
