"""Which noise levels training sees: a density of u, then the same shift as sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from longcat_tune.errors import ConfigError
from longcat_tune.flow.schedule import shift_sigma, unshift_sigma

DensityKind = Literal["logit_normal", "uniform", "beta"]

LEAST_MASS = 1e-200
"""Below it a window's share of the density is lost in the tail of double precision."""


@dataclass(frozen=True, slots=True)
class SigmaDensity:
    """The distribution of sigma in training.

    Attributes:
        kind: density of u before the shift. `logit_normal`: sigmoid(scale * normal), Esser et al. 2024
            (arXiv 2403.03206), section 3.1; `uniform`; `beta`: Beta(2, 2).
        shift: sigma = shift u / (1 + (shift - 1) u).
        sigmoid_scale: width of the logit-normal.
        min_sigma: lower end of the window that sigma is drawn from, 0 to 1.
        max_sigma: its upper end. Inside the window the density keeps its shape, outside it is 0.

    Raises:
        ConfigError: the window lies where the density has next to nothing.
    """

    kind: DensityKind = "logit_normal"
    shift: float = 12.0
    sigmoid_scale: float = 1.0
    min_sigma: float = 0.0
    max_sigma: float = 1.0

    def __post_init__(self) -> None:
        low, high = self._window()
        if float(high - low) < LEAST_MASS:
            raise ConfigError(
                f"flow_min_sigma ({self.min_sigma:g}) and flow_max_sigma ({self.max_sigma:g}) leave next to "
                "nothing of the density of noise levels, and there must be something to draw; widen the "
                "window, or set flow_use_uniform_schedule to true"
            )

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Draw sigmas on the generator's device.

        Args:
            count: how many.
            generator: the only source of randomness.

        Returns:
            Float32 [count], 0 to 1 and within the window; a uniform density reaches 0 itself.
        """
        device = generator.device
        if self._has_window:
            p = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
            return self.quantile(p)
        if self.kind == "logit_normal":
            u = torch.sigmoid(self.sigmoid_scale * torch.randn(count, generator=generator, device=device))
        elif self.kind == "uniform":
            u = torch.rand(count, generator=generator, device=device)
        else:
            # Beta(2, 2) is the middle one of three uniform draws.
            u = torch.rand(count, 3, generator=generator, device=device).median(dim=-1).values
        return shift_sigma(u, self.shift)

    def quantile(self, p: Tensor) -> Tensor:
        """Turn shares of the density into the noise levels below which they lie: the inverse of its CDF.

        Args:
            p: float64, 0 to 1.

        Returns:
            Float32, in the window.
        """
        low, high = self._window()
        x = self._inverse_cdf(high - p * (high - low) if self._is_mirrored else low + p * (high - low))
        u = torch.sigmoid(self.sigmoid_scale * x) if self.kind == "logit_normal" else x
        if self._is_mirrored:
            u = 1 - u
        # Rounding may step over an end by one unit.
        return shift_sigma(u, self.shift).float().clamp(self.min_sigma, self.max_sigma)

    @property
    def _has_window(self) -> bool:
        return self.min_sigma > 0 or self.max_sigma < 1

    @property
    def _is_mirrored(self) -> bool:
        """Whether the window lies in the upper half of u, where a CDF near 1 has no digits left."""
        return unshift_sigma(torch.tensor(self.min_sigma), self.shift).item() > 0.5

    def _window(self) -> tuple[Tensor, Tensor]:
        """The CDF of u at both ends of the window; of 1 - u, which has the same density, when mirrored."""
        ends = torch.tensor([self.min_sigma, self.max_sigma], dtype=torch.float64)
        u = unshift_sigma(ends, self.shift)
        low, high = (1 - u).flip(0) if self._is_mirrored else u
        return self._cdf(low), self._cdf(high)

    def _cdf(self, u: Tensor) -> Tensor:
        if self.kind == "logit_normal":
            # Not special.ndtr: torch's is (1 + erf) / 2, which is 0 below -8.3.
            return torch.erfc(-torch.logit(u) / (self.sigmoid_scale * math.sqrt(2))) / 2
        return u if self.kind == "uniform" else u.square() * (3 - 2 * u)

    def _inverse_cdf(self, p: Tensor) -> Tensor:
        """The inverse of `_cdf`: a standard normal variable for the logit-normal, else u."""
        if self.kind == "logit_normal":
            normal: Tensor = torch.special.ndtri(p)
            return normal
        return p if self.kind == "uniform" else 0.5 - torch.sin(torch.asin(1 - 2 * p) / 3)
