"""Which noise levels training sees: a density of u, then the same shift as sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from longcat_tune.flow.schedule import shift_sigma

DensityKind = Literal["logit_normal", "uniform", "beta"]


@dataclass(frozen=True, slots=True)
class SigmaDensity:
    """The distribution of sigma in training.

    Attributes:
        kind: density of u before the shift. `logit_normal`: sigmoid(scale * normal), Esser et al. 2024
            (arXiv 2403.03206), section 3.1; `uniform`; `beta`: Beta(2, 2).
        shift: sigma = shift u / (1 + (shift - 1) u).
        sigmoid_scale: width of the logit-normal.
    """

    kind: DensityKind = "logit_normal"
    shift: float = 12.0
    sigmoid_scale: float = 1.0

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Draw sigmas on the generator's device.

        Args:
            count: how many.
            generator: the only source of randomness.

        Returns:
            Float32 [count], strictly between 0 and 1.
        """
        device = generator.device
        if self.kind == "logit_normal":
            u = torch.sigmoid(self.sigmoid_scale * torch.randn(count, generator=generator, device=device))
        elif self.kind == "uniform":
            u = torch.rand(count, generator=generator, device=device)
        else:
            # Beta(2, 2) is the middle one of three uniform draws.
            u = torch.rand(count, 3, generator=generator, device=device).median(dim=-1).values
        return shift_sigma(u, self.shift)
