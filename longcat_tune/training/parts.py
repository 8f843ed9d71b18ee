"""What a step is made with, put together once by `runs`; together with the loop accelerate's door here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from longcat_tune.flow.weighting import Weigh, equal_weights
from longcat_tune.training.ema import Ema
from longcat_tune.training.interfaces import SameWeights, Weights
from longcat_tune.training.processes import Processes
from longcat_tune.training.schedules import AppliedSchedule
from longcat_tune.training.step import DrawSigma

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What a step is made with.

    Attributes:
        model: on the accelerator's device; only the optimizer's parameters need gradients. Not wrapped for
            several processes: the step averages the gradients itself.
        optimizer: over the trained parameters.
        schedule: stepped once per optimizer step.
        accelerator: gives the device and the processes.
        draw_sigma: the training density of noise levels.
        compute: entered for every forward pass, such as autocast.
        huber_c: see `flow_loss`.
        as_base: entered for predictions of the model without what is trained.
        weigh: how much each noise level's loss counts.
        weights: which weights are stepped and which are saved.
        ema: taken along after every step.
        lockstep: as in Processes.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: AppliedSchedule
    accelerator: Accelerator
    draw_sigma: DrawSigma
    compute: Callable[[], AbstractContextManager[object]] = nullcontext
    huber_c: float | None = None
    as_base: Callable[[], AbstractContextManager[object]] = nullcontext
    weigh: Weigh = equal_weights
    weights: Weights = field(default_factory=SameWeights)
    ema: Ema | None = None
    lockstep: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """The trained ones."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def processes(self) -> Processes:
        """Those of the run."""
        return Processes(self.accelerator.process_index, self.accelerator.num_processes, self.lockstep)
