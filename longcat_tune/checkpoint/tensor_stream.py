"""Safetensors files written one tensor at a time: a file of 30 GB needs the memory of its largest tensor.

The library's own writer wants all tensors at once. Format: eight bytes with the header's length, the header
as JSON padded with spaces to a multiple of eight, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls each kind of number."""

ALIGNMENT = 8


class Layout(NamedTuple):
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """That of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def read_layouts(path: Path) -> dict[str, Layout]:
    """What a safetensors file holds, in an order in which `write_tensor_stream` can write it again.

    Raises:
        SafetensorError: the file is damaged, or holds numbers of a kind that is not known here.
        OSError: it cannot be opened.
    """
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    layouts = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            header = file.get_slice(name)
            if header.get_dtype() not in dtypes:
                raise SafetensorError(f"{name} holds numbers of the unknown kind {header.get_dtype()}")
            layouts[name] = Layout(dtypes[header.get_dtype()], tuple(header.get_shape()))
    return in_order(layouts)


def in_order(layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """Larger numbers first, so that every number stands where its size divides the offset."""
    return dict(sorted(layouts.items(), key=lambda item: -item[1].dtype.itemsize))


def write_tensor_stream(
    path: Path,
    layouts: Mapping[str, Layout],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file; not in one step, so give it a path that nobody reads yet.

    Args:
        path: in a folder that exists.
        layouts: of all tensors, from `in_order`.
        tensors: the same names in the same order, made when they are asked for.
        metadata: what the file says about itself.

    Raises:
        ValueError: a tensor is not the one that was announced.
        OSError: the disk.
    """
    with path.open("wb") as file:
        file.write(_header(layouts, metadata))
        for (name, layout), (given, tensor) in zip(layouts.items(), tensors, strict=True):
            if given != name or Layout.of(tensor) != layout:
                msg = f"tensor {given} {Layout.of(tensor)} was announced as {name} {layout}"
                raise ValueError(msg)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(layouts: Mapping[str, Layout], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, layout in layouts.items():
        end = start + layout.num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
