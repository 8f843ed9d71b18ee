"""Finds float64 on a device, which Apple's MPS does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RefuseFloat64(TorchDispatchMode):
    """Fails on any operation that takes or makes a float64 tensor on a kind of device."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, out)):
            if isinstance(one, torch.Tensor) and one.device.type == self._device_type:
                assert one.dtype != torch.float64, func
        return out
