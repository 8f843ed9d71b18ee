"""A running average of the trained weights, in float32; knows them by name and shape only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from longcat_tune.errors import CheckpointError
from longcat_tune.files import write_tensors_atomically

EMA_FILE = "ema.safetensors"
"""The average by the weights' names; its metadata holds the number of updates."""


class Ema:
    """An exponential moving average of weights.

    Args:
        named: the trained weights by name; the average begins with what they are now.
        decay: share of the average that an update keeps, above 0 and below 1. The n-th update (from 0) keeps
            min(decay, (1 + n) / (10 + n)), so that the first weights, which are nearly nothing in a LoRA, are
            soon forgotten (as in tensorflow/tensorflow, python/training/moving_averages.py).
    """

    def __init__(self, named: Iterable[tuple[str, Parameter]], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._named = dict(named)
        self._average = [parameter.detach().float().clone() for parameter in self._named.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as an optimizer step left them."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [parameter.detach().float() for parameter in self._named.values()]
        torch._foreach_lerp_(self._average, now, 1 - keep)
        self.updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the average in place of the weights for the block; they come back to the bit."""
        trained = [parameter.detach().clone() for parameter in self._named.values()]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(trained)

    def write(self, folder: Path) -> None:
        """Write EMA_FILE into a checkpoint.

        Raises:
            UserError: the disk is full or the folder not writable.
        """
        tensors = dict(zip(self._named, self._average, strict=True))
        write_tensors_atomically(folder / EMA_FILE, tensors, {"updates": str(self.updates)})

    def resume(self, folder: Path) -> None:
        """Go on with a checkpoint's average; where it has none, begin with the weights as they are now.

        Args:
            folder: the checkpoint, whose weights have been loaded already.

        Raises:
            CheckpointError: the average is of other weights.
        """
        path = folder / EMA_FILE
        if not path.is_file():
            self.updates = 0
            self._average = [parameter.detach().float().clone() for parameter in self._named.values()]
            return
        with safe_open(path, "pt") as file:
            self.updates = int(file.metadata()["updates"])
        stored = load_file(path)
        expected = {name: parameter.shape for name, parameter in self._named.items()}
        if {name: tensor.shape for name, tensor in stored.items()} != expected:
            raise CheckpointError(
                f"{path} holds the average of other weights ({len(stored)}) than this run trains "
                f"({len(expected)}); resume with the same lora_rank and lora_target, or set use_ema to false"
            )
        for average, name in zip(self._average, self._named, strict=True):
            average.copy_(stored[name])

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        for parameter, value in zip(self._named.values(), weights, strict=True):
            parameter.copy_(value)
