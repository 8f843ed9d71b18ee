"""What the trainings of the miniature's parts share: averaged weights, and a state that no stop can tear."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

EMA_DECAY = 0.999


@torch.no_grad()
def blend(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the model, faster in the first steps."""
    decay = min(EMA_DECAY, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_state(path: Path, step: int, **parts: nn.Module | torch.optim.Optimizer) -> None:
    """Write the state beside and rename it."""
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(path)


def load_state(path: Path, **parts: nn.Module | torch.optim.Optimizer) -> int:
    """Read a state back, if there is one; returns the steps it had finished."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    step: int = state["step"]
    return step
