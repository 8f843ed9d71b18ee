"""RunConfig to RunPlan: what was asked becomes folders that exist, clips in buckets, and steps.

Looks for no weights; every clip found is either planned or refused with a reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.load import load_datasets
from longcat_tune.config.run import RunConfig
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.planning import DatasetPlan, plan_dataset
from longcat_tune.data.sampler import count_batches
from longcat_tune.errors import DataError
from longcat_tune.types import Bucket, PlannedClip, Refusal

logger = logging.getLogger(__name__)


TRAINED_TYPES = ("video", "image")
NAMED_AT_MOST = 5
WHERE_TO_LOOK = "`longcat-tune check` shows the whole picture"


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """One entry of the data file with what became of its clips.

    Attributes:
        entry: as written.
        plan: its clips in buckets, and those refused.
    """

    entry: DatasetEntry
    plan: DatasetPlan

    @property
    def bucket_uses(self) -> dict[Bucket, int]:
        """How often each bucket's clips are used in one epoch."""
        uses: dict[Bucket, int] = {}
        for clip in self.plan.clips:
            uses[clip.bucket] = uses.get(clip.bucket, 0) + self.entry.repeats + 1
        return uses


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will do.

    Attributes:
        training: the datasets trained on.
        held_out: the datasets that are not trained on.
        render_source: the one of them that eval_dataset_id names.
        conditioning: the entries of start images.
        text_cache: folder of text features, when an entry names one.
        steps_per_epoch: optimizer steps in one pass over all clips.
        max_steps: optimizer steps of the run; None when its length was not given.
    """

    training: tuple[PlannedDataset, ...]
    held_out: tuple[PlannedDataset, ...]
    render_source: DatasetPlan | None
    conditioning: tuple[DatasetEntry, ...]
    text_cache: Path | None
    steps_per_epoch: int
    max_steps: int | None

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Every file of every dataset that cannot be used."""
        datasets = (*self.training, *self.held_out)
        return tuple(refusal for dataset in datasets for refusal in dataset.plan.refusals)

    def training_clips(self) -> Iterator[tuple[DatasetEntry, PlannedClip]]:
        """Every clip trained on, in a fixed order."""
        for dataset in self.training:
            for clip in dataset.plan.clips:
                yield dataset.entry, clip

    def conditioning_entry(self, image: Path) -> DatasetEntry | None:
        """The entry whose folder holds this start image."""
        for entry in self.conditioning:
            if image.is_relative_to(entry.instance_data_dir):
                return entry
        return None

    def require_usable(self, *, told: bool = False) -> None:
        """Stop before anything is encoded when a file was refused.

        Args:
            told: the refused files have been shown already.

        Raises:
            DataError: lists every refused file with its reason and remedy.
        """
        refusals = self.refusals
        if refusals:
            found = sum(dataset.plan.found for dataset in (*self.training, *self.held_out))
            head = f"{len(refusals)} of {found} files found cannot be used"
            if told:
                raise DataError(f"{head}; they are listed above, each with its remedy")
            lines = [describe(refusal) for refusal in refusals]
            raise DataError("\n  ".join([f"{head}; {WHERE_TO_LOOK}:", *lines]))

    def require_sound(self, *, told: bool = False) -> None:
        """Stop before anything is encoded when a file was refused, or nothing is left to train on.

        Args:
            told: as in `require_usable`.

        Raises:
            DataError: as `require_usable`; or there are no clips.
        """
        self.require_usable(told=told)
        if not any(dataset.plan.clips for dataset in self.training):
            ids = ", ".join(dataset.entry.id for dataset in self.held_out)
            aside = f" ({ids} is held out for renders)" if ids else ""
            msg = (
                f"data_backend_config: no clips to train on{aside}; add an entry of dataset_type video or "
                f"image whose folder holds some; {WHERE_TO_LOOK}"
            )
            raise DataError(msg)


def describe(refusal: Refusal) -> str:
    """One line for a refused file: which, why, what to do."""
    return f"{refusal.dataset_id}: {refusal.path} {refusal.reason}; {refusal.remedy}"


def make_plan(config: RunConfig, *, config_dir: Path) -> RunPlan:
    """Look at every file of every dataset and decide what becomes of it.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        ConfigError: the data file is wrong, or eval_dataset_id names nothing.
        DataError: a folder is missing or empty.
    """
    entries = load_datasets(config, config_dir=config_dir)
    stills = {entry.id: scan(entry) for entry in entries if entry.dataset_type == "conditioning"}
    held_out_id = config.validation.eval_dataset_id
    trained, held_out = [], []
    for entry in entries:
        if entry.dataset_type in TRAINED_TYPES and entry.id != held_out_id:
            trained.append(_planned(entry, stills, config))
        elif entry.dataset_type == "eval" or entry.id == held_out_id:
            held_out.append(_planned(entry, stills, config))
    _tell_unused(stills.values(), (*trained, *held_out))
    training = config.training
    uses = (count for dataset in trained for count in dataset.bucket_uses.values())
    batches = count_batches(uses, training.train_batch_size)
    steps_per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    return RunPlan(
        training=tuple(trained),
        held_out=tuple(held_out),
        render_source=next((one.plan for one in held_out if one.entry.id == held_out_id), None),
        conditioning=tuple(entry for entry in entries if entry.id in stills),
        text_cache=_text_cache(entries),
        steps_per_epoch=steps_per_epoch,
        max_steps=_max_steps(config, steps_per_epoch),
    )


def plan_renders(config: RunConfig, *, config_dir: Path, source_id: str | None = None) -> RunPlan:
    """Plan renders without training: no clip is looked at but those that are rendered from.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        source_id: the dataset that gives captions and start images, if any.

    Raises:
        ConfigError: the data file is wrong.
        DataError: a folder is missing or empty.
    """
    entries: tuple[DatasetEntry, ...] = ()
    if source_id is not None or config.data.data_backend_config is not None:
        entries = load_datasets(config, config_dir=config_dir)
    sources = [entry for entry in entries if entry.id == source_id]
    starts = [entry for entry in entries for source in sources if entry.id in source.conditioning_data]
    stills = {entry.id: scan(entry) for entry in starts}
    held_out = tuple(_planned(source, stills, config) for source in sources)
    return RunPlan(
        training=(),
        held_out=held_out,
        render_source=held_out[0].plan if held_out else None,
        conditioning=tuple(starts),
        text_cache=_text_cache(entries),
        steps_per_epoch=0,
        max_steps=None,
    )


def _text_cache(entries: Sequence[DatasetEntry]) -> Path | None:
    return next((entry.cache_dir for entry in entries if entry.dataset_type == "text_embeds"), None)


def _planned(entry: DatasetEntry, stills: dict[str, Manifest], config: RunConfig) -> PlannedDataset:
    partners = tuple(stills[name] for name in entry.conditioning_data)
    plan = plan_dataset(
        entry,
        scan(entry, backend=config.data.video_backend),
        framerate=config.data.framerate,
        seed=config.training.seed,
        conditioning=partners,
    )
    return PlannedDataset(entry, plan)


def _tell_unused(stills: Iterable[Manifest], datasets: Sequence[PlannedDataset]) -> None:
    """Say which start images no clip is paired with: often a clip's name was changed."""
    used = {clip.record.conditioning for dataset in datasets for clip in dataset.plan.clips}
    for manifest in stills:
        unused = [record.name for record in manifest.records if record.path not in used]
        if unused:
            names = ", ".join(unused[:NAMED_AT_MOST]) + (", ..." if len(unused) > NAMED_AT_MOST else "")
            logger.info(
                "%s: %d of %d start images belong to no clip: %s",
                manifest.dataset_id,
                len(unused),
                manifest.found,
                names,
            )


def _max_steps(config: RunConfig, steps_per_epoch: int) -> int | None:
    if config.training.max_train_steps is not None:
        return config.training.max_train_steps
    epochs = config.training.num_train_epochs
    return None if epochs is None else epochs * steps_per_epoch
