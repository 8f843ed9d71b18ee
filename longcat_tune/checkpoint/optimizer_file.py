"""An optimizer's state as safetensors and JSON, for any optimizer of torch's interface; no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from longcat_tune.errors import CheckpointError
from longcat_tune.files import write_json_atomically, write_tensors_atomically

TENSORS_FILE = "optimizer.safetensors"
"""State tensors as `<parameter number>.<name>`; `<number>.<name>.<name>` where a state holds another."""
VALUES_FILE = "optimizer.json"
"""State that is no tensor, the parameter groups, and which optimizer it all belongs to."""

CONFIGURED = frozenset({"lr", "initial_lr", "betas", "eps", "weight_decay", "fused", "foreach"})
"""Group settings that follow from the config and the device: not saved, a resumed run takes its own."""


def write_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Write both files.

    Raises:
        UserError: the disk is full or the folder not writable.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in _flat(packed["state"]):
        if isinstance(value, Tensor):
            # A copy: 8-bit optimizers let all parameters share a table, which safetensors does not write.
            tensors[name] = value.clone()
        else:
            values[name] = value
    groups = [_without(group, CONFIGURED | {"params"}) for group in packed["param_groups"]]
    # Never without metadata: safetensors 0.8 cannot read back what it writes for no tensors and none.
    write_tensors_atomically(folder / TENSORS_FILE, tensors, {"format": "pt"})
    write_json_atomically(
        folder / VALUES_FILE,
        {
            "optimizer": type(optimizer).__name__,
            "shapes": _shapes(optimizer),
            "groups": groups,
            "state": values,
        },
    )


def read_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Put saved state into a fresh optimizer over the same parameters, to the bit.

    What some optimizers count or estimate in their groups comes back too; what the config sets (CONFIGURED)
    stays as the optimizer was built, so that a changed learning rate takes effect.

    Raises:
        CheckpointError: the optimizer is of another kind or has other parameters.
    """
    values = json.loads((folder / VALUES_FILE).read_text(encoding="utf-8"))
    # Checkpoints of the first schema knew only AdamW, and did not say so.
    kind, own_kind = values.get("optimizer", "AdamW"), type(optimizer).__name__
    if kind != own_kind:
        msg = (
            f"the optimizer state in {folder} is {kind}'s, and this run's optimizer is {own_kind}; resume "
            "with the same optimizer, or use another output_dir"
        )
        raise CheckpointError(msg)
    if values["shapes"] != _shapes(optimizer):
        saved, own = (sum(map(len, shapes)) for shapes in (values["shapes"], _shapes(optimizer)))
        msg = (
            f"the optimizer state in {folder} belongs to {saved} parameters, which differ in number or shape "
            f"from the {own} of this run; resume with the same lora_rank, lora_target and "
            "lora_plus_ratio, or use another output_dir"
        )
        raise CheckpointError(msg)
    # Copies: safetensors gives tensors at any offset, and some kernels want aligned ones.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS_FILE).items()}
    state = {int(number): own for number, own in _nested(values["state"] | tensors).items()}
    groups = [
        own | saved
        for own, saved in zip(optimizer.state_dict()["param_groups"], values["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _flat(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a state and of the states within it."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    state: dict[str, Any] = {}
    for dotted, value in flat.items():
        *path, name = dotted.split(".")
        inner = state
        for one in path:
            inner = inner.setdefault(one, {})
        inner[name] = value
    return state


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    """The shape of every parameter, by group."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _without(group: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in names}
