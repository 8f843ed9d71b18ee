"""Section flow: which noise levels are trained."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from longcat_tune.config.schema import Section


class FlowSection(Section):
    """Density of the noise level u before the shift, and the shift itself."""

    flow_schedule_shift: float = Field(
        default=12.0,
        gt=0,
        description="Shift s of the noise level, s u / (1 + (s - 1) u); 12 is the model's own.",
    )
    flow_sigmoid_scale: float = Field(
        default=1.0, gt=0, description="Spread of the default density: u = sigmoid(scale x normal)."
    )
    flow_use_uniform_schedule: bool = Field(default=False, description="Draw u evenly from 0 to 1.")
    flow_use_beta_schedule: bool = Field(default=False, description="Draw u from Beta(2, 2).")

    @model_validator(mode="after")
    def _one_density(self) -> Self:
        if self.flow_use_uniform_schedule and self.flow_use_beta_schedule:
            raise ValueError(
                "flow_use_uniform_schedule and flow_use_beta_schedule (both true) exclude each other; "
                "keep one"
            )
        return self
