"""What the loop does together with other processes of the run; alone, it does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train one set of weights, each with its own batches; all call each method.

    Attributes:
        rank: of this one, from 0.
        count: of all.
        lockstep: whether each holds only a share of the base: all must then make the same forward passes,
            and none may leave out one alone.
    """

    rank: int = 0
    count: int = 1
    lockstep: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this one logs, saves and renders."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Give everyone what each has, by rank.

        Args:
            value: small; it is pickled on the way.
        """
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return cast(list[T], values)

    def agree(self, wish: bool) -> bool:
        """Whether any of them wishes it."""
        return any(self.gather(wish))

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over all processes, the same to the bit in each.

        In one transfer at the end of a step: a LoRA's gradients are small, and a process that runs out of
        memory within its step cannot leave the others waiting in the middle of theirs.
        """
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
