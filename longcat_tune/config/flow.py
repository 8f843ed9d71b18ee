"""Section flow: which noise levels are trained, and how errors count."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longcat_tune.config.schema import Instead, Section


class FlowSection(Section):
    """Density of the noise level u before the shift, the shift itself, and the loss."""

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
    flow_min_sigma: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Lowest noise level, after the shift, that is trained; the density keeps its shape "
        "above.",
    )
    flow_max_sigma: float = Field(
        default=1.0, gt=0, le=1, description="Highest noise level (after the shift) that is trained."
    )
    flow_loss_weighting: Literal["none", "sigma_sqrt", "bell"] = Field(
        default="none",
        description="Weight of a sample's loss by its noise level. sigma_sqrt: 1 / sigma^2, as diffusers has "
        "it, without bound at low noise (see flow_min_sigma); bell: exp(-2 (sigma - 1/2)^2) - exp(-1/2), as "
        "DiffSynth-Studio has it, scaled to mean 1.",
    )
    loss_type: Annotated[Literal["l2", "huber"], Instead({"smooth_l1": "huber"})] = Field(
        default="l2",
        description="How an error x counts. l2: x^2; huber: 2 c (sqrt(x^2 + c^2) - c) with c = huber_c.",
    )
    huber_c: float = Field(
        default=0.1, gt=0, description="Where huber turns from a square into a line; unused by l2."
    )

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.flow_min_sigma >= self.flow_max_sigma:
            raise ValueError(
                f"flow_min_sigma ({self.flow_min_sigma:g}) must be below flow_max_sigma "
                f"({self.flow_max_sigma:g}); lower it, or remove both to train all noise levels"
            )
        return self

    @model_validator(mode="after")
    def _one_density(self) -> Self:
        if self.flow_use_uniform_schedule and self.flow_use_beta_schedule:
            raise ValueError(
                "flow_use_uniform_schedule and flow_use_beta_schedule (both true) exclude each other; "
                "keep one"
            )
        return self
