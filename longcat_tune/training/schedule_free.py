"""The two sets of weights of a schedule-free optimizer: those it steps, and the average that is wanted.

Knows schedulefree's optimizers by their `train` and `eval`. Their own switch loses the last bits of the
weights, so these are kept aside meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

TRAINED = "trained"
"""Name of the weights kept aside, among an optimizer's state: a checkpoint saves them with it."""


@dataclass(frozen=True, slots=True)
class ScheduleFreeWeights:
    """Switches between both sets.

    Attributes:
        optimizer: of schedulefree (Defazio et al. 2024, arXiv 2405.15682); steps y, its `eval` gives x.
    """

    optimizer: Any

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """Put the average x in place for the block; y comes back to the bit."""
        for parameter in self._parameters():
            self.optimizer.state[parameter][TRAINED] = parameter.detach().clone()
        self.optimizer.eval()
        try:
            yield
        finally:
            self.take_up()

    @torch.no_grad()
    def take_up(self) -> None:
        """Put y in place for the next step: at the start of a run, and after a checkpoint was loaded."""
        self.optimizer.train()
        for parameter in self._parameters():
            trained = self.optimizer.state[parameter].pop(TRAINED, None)
            if trained is not None:
                parameter.copy_(trained)

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
