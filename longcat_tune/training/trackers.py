"""TensorBoard and Weights & Biases, following a run by the events that events.jsonl holds.

Their packages (the extra `trackers`) are imported when a run reports to them. Knows events as names and
fields; what they mean stands in training/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from longcat_tune.errors import ConfigError, UserError
from longcat_tune.training.metrics import BANDS, EventName

TrackerName = Literal["none", "tensorboard", "wandb"]

TENSORBOARD_FOLDER = "tensorboard"


class Tracker(Protocol):
    """What follows a run."""

    @property
    def run_id(self) -> str | None:
        """What it knows the run by; a checkpoint keeps it, so that a resumed run goes on in its place."""

    def hear(self, event: EventName, fields: Mapping[str, Any]) -> None:
        """Take an event, as a listener of EventLog."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run when it begins.

    Attributes:
        output_dir: of the run; what trackers write stays in it.
        project: that the run belongs to.
        name: of the run.
        config: every key with its value.
        run_id: what the tracker knew the run by before it was resumed; None: a new run.
        first_step: that will be made next; what a tracker has of this step and later ones is repeated.
    """

    output_dir: Path
    project: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    first_step: int = 1


def require_tracker(name: TrackerName) -> None:
    """Refuse a tracker that is not installed, before long work counts on it.

    Raises:
        ConfigError: its package is missing.
    """
    if name != "none" and find_spec(name) is None:
        raise ConfigError(
            f"report_to ({name}) needs the package {name}, which is not installed; "
            "pip install 'longcat-tune[trackers]', or set report_to to none"
        )


@contextmanager
def tracking(name: TrackerName, run: TrackedRun) -> Iterator[Tracker]:
    """Let a tracker follow a run for the block.

    Args:
        name: which; none hears nothing.
        run: what to tell it.

    Raises:
        ConfigError: as `require_tracker`.
        UserError: wandb cannot open a run: not logged in, or no network.
    """
    require_tracker(name)
    if name == "none":
        yield NoTracker()
    elif name == "tensorboard":
        with _tensorboard(run) as tracker:
            yield tracker
    else:
        with _wandb(run) as tracker:
            yield tracker


class NoTracker:
    """Hears nothing."""

    run_id: str | None = None

    def hear(self, event: EventName, fields: Mapping[str, Any]) -> None:
        """Let the event pass."""


@dataclass(frozen=True, slots=True)
class TensorBoardTracker:
    """Curves in a folder that `tensorboard --logdir` shows.

    Attributes:
        writer: of torch.utils.tensorboard.
    """

    writer: Any
    run_id: str | None = None

    def hear(self, event: EventName, fields: Mapping[str, Any]) -> None:
        """Draw the event's numbers."""
        for name, value in scalars(event, fields).items():
            self.writer.add_scalar(name, value, fields["step"])


@dataclass(frozen=True, slots=True)
class WandbTracker:
    """A run of Weights & Biases; with WANDB_MODE=offline it is written to output_dir/wandb only.

    Attributes:
        run: of wandb.
    """

    run: Any

    @property
    def run_id(self) -> str | None:
        """Wandb's own."""
        return str(self.run.id)

    def hear(self, event: EventName, fields: Mapping[str, Any]) -> None:
        """Log the event's numbers over its step."""
        # A field of its own: wandb's step cannot go back, but a resumed run may.
        if values := scalars(event, fields):
            self.run.log({**values, "step": fields["step"]})


def scalars(event: EventName, fields: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an event that make curves over its step.

    Args:
        event: its kind; those without a step and previews give none.
        fields: as in events.jsonl.
    """
    # A preview's number counts steps of one render, not what is learned.
    if "step" not in fields or event == "preview":
        return {}
    if event == "sigma_bands":
        means = enumerate(fields["losses"])
        return {f"loss_by_sigma/{_band(number)}": mean for number, mean in means if mean is not None}
    if event == "evaluation":
        return _evaluation_scalars(fields)
    prefix = "train" if event == "step" else event
    return {
        f"{prefix}/{name}": value
        for name, value in fields.items()
        if name != "step" and type(value) in {int, float}
    }


def _evaluation_scalars(fields: Mapping[str, Any]) -> dict[str, float]:
    """The losses pooled, by task, by noise level, and by both."""
    by_task = {f"_{task}": losses for task, losses in fields["losses_by_task"].items()}
    return {
        "evaluation/loss": fields["loss"],
        **{f"evaluation/loss_{task}": loss for task, loss in fields["by_task"].items()},
        **{
            f"evaluation_by_sigma{task}/{sigma:.3f}": loss
            for task, losses in {"": fields["losses"], **by_task}.items()
            for sigma, loss in zip(fields["sigmas"], losses, strict=True)
        },
    }


def _band(number: int) -> str:
    """`0.3-0.4`."""
    return f"{number / BANDS:.1f}-{(number + 1) / BANDS:.1f}"


@contextmanager
def _tensorboard(run: TrackedRun) -> Iterator[TensorBoardTracker]:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.output_dir / TENSORBOARD_FOLDER
    with SummaryWriter(str(folder), purge_step=run.first_step) as writer:
        yield TensorBoardTracker(writer)


@contextmanager
def _wandb(run: TrackedRun) -> Iterator[WandbTracker]:
    import wandb

    try:
        opening = wandb.init(
            dir=str(run.output_dir),
            project=run.project,
            name=run.name,
            id=run.run_id,
            resume=None if run.run_id is None else "allow",
            config=dict(run.config),
        )
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"report_to (wandb) cannot open a run ({reason}); log in with `wandb login`, or set the "
            "environment variable WANDB_MODE=offline and `wandb sync` the run later, or set report_to to none"
        ) from error
    with opening as opened:
        opened.define_metric("*", step_metric="step")
        yield WandbTracker(opened)
