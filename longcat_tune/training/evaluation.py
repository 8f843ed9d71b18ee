"""The loss on held-out clips, measured so that its numbers can be compared: of two steps, runs or seeds.

Nothing is drawn that another run would draw otherwise: noise levels follow from the flow shift, noise from
the clip's name and a constant. Knows a model and batches; no file, no optimizer and no plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from longcat_tune.errors import DataError
from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.noising import standard_noise
from longcat_tune.training.eval_result import ClipLosses
from longcat_tune.training.step import stable_seed, to_device, training_step
from longcat_tune.training.trouble import explained_out_of_memory
from longcat_tune.types import Batch

NUM_SIGMAS = 8
SEED = 0
"""Of all noise, whatever the run's seed; with another one no loss measured before could be compared."""


@dataclass(frozen=True, slots=True)
class HeldOutClip:
    """A clip to measure the loss of, for one task.

    Attributes:
        name: that its noise is drawn from: the file's, so that it stays when the dataset is renamed.
        batch: of this clip alone, on the host.
    """

    name: str
    batch: Batch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a run measures its loss on.

    Attributes:
        clips: gives this process's share of them one after another, anew with every call; may raise
            UserError.
        sigmas: noise levels that each is measured at.
        identity: as `identity_of`, of the clips of all processes.
    """

    clips: Callable[[], Iterable[HeldOutClip]]
    sigmas: tuple[float, ...]
    identity: str


def eval_sigmas(shift: float) -> tuple[float, ...]:
    """The noise levels of an evaluation: the middles of eight equal shares of the logit-normal density.

    They follow from the shift alone: a run's own density, its scale and its window leave them as they are.

    Args:
        shift: flow_schedule_shift.
    """
    shares = (torch.arange(NUM_SIGMAS, dtype=torch.float64) + 0.5) / NUM_SIGMAS
    return tuple(SigmaDensity(shift=shift).quantile(shares).tolist())


def eval_noise(name: str, level: int, shape: Sequence[int]) -> Tensor:
    """The noise of one clip at one noise level, drawn on the CPU in float32.

    Args:
        name: of the clip.
        level: number of the noise level, from 0.
        shape: of the latents.
    """
    generator = Generator().manual_seed(stable_seed(SEED, "evaluation", level, name))
    return standard_noise(tuple(shape), generator)


def identity_of(sigmas: Sequence[float], clips: Iterable[Sequence[str]]) -> str:
    """Hash what a loss depends on besides the weights.

    Args:
        sigmas: noise levels.
        clips: for each clip and task the names that stand for its latents, its text, its noise and its task.
    """
    lines = [" ".join(f"{sigma:.6f}" for sigma in sigmas), *sorted("\0".join(names) for names in clips)]
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@torch.no_grad()
def measure(
    model: nn.Module,
    clips: Iterable[HeldOutClip],
    *,
    sigmas: Sequence[float],
    device: torch.device,
    compute: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[ClipLosses, ...]:
    """Measure clips one by one, each at every noise level; no random state is touched.

    The loss is the squared error, whatever a run minimises.

    Args:
        model: as for `training_step`; left in eval mode, in which nothing is dropped.
        clips: to measure.
        sigmas: noise levels.
        device: the model's.
        compute: entered for every forward pass, such as autocast.

    Raises:
        DataError: a loss is infinite or not a number.
        DeviceError: a clip does not fit into memory.
    """
    model.eval()
    rows = []
    for clip in clips:
        [clip_id] = clip.batch.clip_ids
        with explained_out_of_memory(f"the evaluation of {clip_id}"), compute():
            batch = to_device(clip.batch, device)
            shape = batch.latents_BCTHW.shape
            outputs = [
                training_step(
                    model,
                    batch,
                    sigma_B=torch.tensor([sigma], device=device),
                    noise_BCTHW=eval_noise(clip.name, level, shape).to(device),
                )
                for level, sigma in enumerate(sigmas)
            ]
            # Read together, so that the device is waited for once.
            losses = torch.cat([output.loss_B for output in outputs]).tolist()
        rows.append(ClipLosses(clip_id, batch.num_cond_latents, tuple(losses)))
        _require_finite(rows[-1], sigmas)
    return tuple(rows)


def _require_finite(row: ClipLosses, sigmas: Sequence[float]) -> None:
    for sigma, loss in zip(sigmas, row.losses, strict=True):
        if not math.isfinite(loss):
            raise DataError(
                f"the held-out loss is {loss} for {row.clip_id} at noise level {sigma:.3f}, which must be a "
                "finite number; look at this clip, lower learning_rate, or set mixed_precision: no and "
                "base_model_precision: fp32"
            )
