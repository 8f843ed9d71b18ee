"""RunConfig to RunPlan: what was asked becomes folders that exist, clips in buckets, and steps.

Looks for no weights. Every dataset is looked at whatever is wrong with another, and every file found is
planned, refused with a reason, or left out on demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.load import load_datasets
from longcat_tune.config.run import RunConfig
from longcat_tune.config.validation import ValidationSection
from longcat_tune.data.collecting import uncollected
from longcat_tune.data.duplicates import duplicates
from longcat_tune.data.epochs import DatasetBatches, Phase
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.pairing import blamed_on
from longcat_tune.data.planning import DatasetPlan
from longcat_tune.data.sampler import count_batches
from longcat_tune.data.sources import SourceIndex
from longcat_tune.errors import ConfigError, DataError, UserError
from longcat_tune.runs.problems import Problem, collected, raise_problems
from longcat_tune.runs.start_images import StartImageSet
from longcat_tune.runs.steps import RunSteps, launched_processes, run_steps
from longcat_tune.runs.survey import SourceIndexes, Surveyor
from longcat_tune.types import Bucket, Notice, Refusal

TRAINED_TYPES = ("video", "image")


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
    def keeps_base(self) -> bool:
        """Whether it is regularisation data, which nothing new is learnt from."""
        return self.entry.is_regularisation_data

    @property
    def bucket_uses(self) -> dict[Bucket, int]:
        """How often each bucket's clips are used in one pass over the dataset."""
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
        render_source: the one of them that eval_dataset_id names; None also when it cannot be used.
        start_images: the entries of start images.
        text_cache: folder of text features, when an entry names one.
        phases: stretches of steps that use the same datasets, by their place in training; empty when the
            plan is not sound.
        max_steps: optimizer steps of the run; None when its length was not given.
        notices: what is allowed and should be known.
        errors: what is wrong beside faults and refused files.
        indexes: what is remembered of source files.
    """

    training: tuple[PlannedDataset, ...]
    held_out: tuple[PlannedDataset, ...]
    render_source: DatasetPlan | None
    start_images: tuple[StartImageSet, ...]
    text_cache: Path | None
    phases: tuple[Phase, ...]
    max_steps: int | None
    notices: tuple[Notice, ...]
    errors: tuple[UserError, ...]
    indexes: SourceIndexes

    @property
    def datasets(self) -> tuple[PlannedDataset, ...]:
        """All datasets of clips."""
        return (*self.training, *self.held_out)

    @property
    def conditioning(self) -> tuple[DatasetEntry, ...]:
        """The entries of start images."""
        return tuple(one.entry for one in self.start_images)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch of the first phase; 0 when the plan is not sound."""
        return self.phases[0].steps_per_epoch if self.phases else 0

    @property
    def faults(self) -> tuple[Refusal, ...]:
        """What keeps whole datasets from being used."""
        of_clips = (fault for dataset in self.datasets for fault in dataset.plan.faults)
        return (*of_clips, *(fault for images in self.start_images for fault in images.faults))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Every file that cannot be used; a start image is named with its clip, if it has one."""
        of_clips = [refusal for dataset in self.datasets for refusal in dataset.plan.refusals]
        of_images = (refusal for images in self.start_images for refusal in images.refusals)
        told = {clip.reason for clip in of_clips}
        return (*of_clips, *(image for image in of_images if blamed_on(image) not in told))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that must be changed before the clips can be used, faults first."""
        files = (Problem.of_refusal(refusal) for refusal in (*self.faults, *self.refusals))
        return (*files, *(Problem.of_error(error) for error in self.errors))

    def source_index(self, folder: Path) -> SourceIndex:
        """What is remembered of the source files of a cache folder; one for all who ask."""
        return self.indexes.of(folder)

    def conditioning_entry(self, image: Path) -> DatasetEntry | None:
        """The entry whose folder holds this start image."""
        for images in self.start_images:
            if image.is_relative_to(images.entry.instance_data_dir):
                return images.entry
        return None

    def require_sound(self) -> None:
        """Stop before anything is encoded when something must be changed first.

        Raises:
            DataError: lists every fault, every refused file and every error with its remedy.
        """
        raise_problems(self.problems)


@uncollected()
def make_plan(config: RunConfig, *, config_dir: Path) -> RunPlan:
    """Look at every file of every dataset and decide what becomes of it.

    What is learned of the files is kept in the caches' folders for the next time, where that is possible.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.

    Raises:
        ConfigError: the data file is wrong, or eval_dataset_id names nothing.
    """
    entries = load_datasets(config, config_dir=config_dir)
    surveyor = Surveyor(config, {entry.id: entry for entry in entries})
    manifests = {
        entry.id: surveyor.manifest(entry) for entry in entries if entry.dataset_type != "text_embeds"
    }
    held_out_id = config.validation.eval_dataset_id
    trained, held_out = [], []
    for entry in entries:
        if surveyor.is_held_out(entry):
            held_out.append(_planned(entry, manifests, surveyor))
        elif entry.dataset_type in TRAINED_TYPES:
            trained.append(_planned(entry, manifests, surveyor))
    datasets = (*trained, *held_out)
    start_images = tuple(_start_images(entries, manifests, datasets))
    steps = _steps(trained, config)
    errors = [*_errors(trained, held_out, steps), *_nothing_to_evaluate(held_out, config.validation)]
    copies: tuple[Notice, ...] = ()
    with collected(errors):
        copies = duplicates(
            [manifests[dataset.entry.id] for dataset in datasets],
            surveyor.index_of,
            held_out=[dataset.entry.id for dataset in held_out],
        )
    surveyor.indexes.keep()
    return RunPlan(
        training=tuple(trained),
        held_out=tuple(held_out),
        render_source=_render_source(held_out, held_out_id),
        start_images=start_images,
        text_cache=_text_cache(entries),
        phases=steps.phases,
        max_steps=steps.max_steps,
        notices=(
            *(notice for dataset in datasets for notice in dataset.plan.notices),
            *(notice for images in start_images for notice in images.notices),
            *copies,
            *_never_used(trained, steps.max_steps),
        ),
        errors=tuple(errors),
        indexes=surveyor.indexes,
    )


def plan_renders(config: RunConfig, *, config_dir: Path, source_id: str | None = None) -> RunPlan:
    """Plan renders without training: no clip is looked at but those that are rendered from.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        source_id: the dataset that gives captions and start images, if any.

    Raises:
        ConfigError: the data file is wrong.
    """
    entries: tuple[DatasetEntry, ...] = ()
    if source_id is not None or config.data.data_backend_config is not None:
        entries = load_datasets(config, config_dir=config_dir)
    surveyor = Surveyor(config, {entry.id: entry for entry in entries})
    sources = [entry for entry in entries if entry.id == source_id]
    stills = [entry for entry in entries for source in sources if entry.id in source.conditioning_data]
    manifests = {entry.id: surveyor.manifest(entry) for entry in (*sources, *stills)}
    held_out = tuple(_planned(source, manifests, surveyor) for source in sources)
    return RunPlan(
        training=(),
        held_out=held_out,
        render_source=_render_source(held_out, source_id),
        start_images=tuple(_start_images(stills, manifests, held_out)),
        text_cache=_text_cache(entries),
        phases=(),
        max_steps=None,
        notices=tuple(notice for dataset in held_out for notice in dataset.plan.notices),
        errors=(),
        indexes=surveyor.indexes,
    )


def _planned(entry: DatasetEntry, manifests: Mapping[str, Manifest], surveyor: Surveyor) -> PlannedDataset:
    partners = [manifests[name] for name in entry.conditioning_data]
    return PlannedDataset(entry, surveyor.plan(entry, manifests[entry.id], partners))


def _render_source(held_out: Sequence[PlannedDataset], wanted: str | None) -> DatasetPlan | None:
    """The dataset that is rendered from, unless it has a fault: then its clips may lack captions."""
    usable = (one.plan for one in held_out if one.entry.id == wanted and not one.plan.faults)
    return next((plan for plan in usable if plan.clips), None)


def _text_cache(entries: Sequence[DatasetEntry]) -> Path | None:
    return next((entry.cache_dir for entry in entries if entry.dataset_type == "text_embeds"), None)


def _start_images(
    entries: Sequence[DatasetEntry], manifests: Mapping[str, Manifest], datasets: Sequence[PlannedDataset]
) -> Iterator[StartImageSet]:
    for entry in entries:
        if entry.dataset_type == "conditioning":
            clips = (one.plan.clips for one in datasets if entry.id in one.entry.conditioning_data)
            yield StartImageSet.of(entry, manifests[entry.id], chain.from_iterable(clips))


def _steps(trained: Sequence[PlannedDataset], config: RunConfig) -> RunSteps:
    batch_size = config.training.train_batch_size
    counted = [
        DatasetBatches(
            count_batches(dataset.bucket_uses.values(), batch_size),
            dataset.entry.probability,
            dataset.entry.start_step,
            dataset.entry.end_step,
        )
        for dataset in trained
    ]
    return run_steps(counted, config.training, processes=launched_processes())


def _errors(
    trained: Sequence[PlannedDataset], held_out: Sequence[PlannedDataset], steps: RunSteps
) -> list[UserError]:
    """What is wrong with the datasets together, unless it follows from what is wrong with one of them."""
    if not all(dataset.plan.clips for dataset in trained):
        # Its faults and refused files say why; what follows from them is no problem of its own.
        return []
    if trained:
        if all(dataset.keeps_base for dataset in trained):
            ids = ", ".join(dataset.entry.id for dataset in trained)
            msg = (
                f"data_backend_config: every dataset ({ids}) is regularisation data, which teaches nothing; "
                "add one to learn from, or set is_regularisation_data to false"
            )
            return [DataError(msg)]
        return list(steps.errors)
    ids = ", ".join(dataset.entry.id for dataset in held_out)
    aside = f" ({ids} is held out for renders)" if ids else ""
    msg = (
        f"data_backend_config: no clips to train on{aside}; add an entry of dataset_type video or image "
        "whose folder holds some"
    )
    return [DataError(msg)]


def _nothing_to_evaluate(
    held_out: Sequence[PlannedDataset], validation: ValidationSection
) -> Iterator[ConfigError]:
    """An evaluation that is asked for without clips for it."""
    if validation.eval_steps_interval is not None and not held_out:
        yield ConfigError(
            f"eval_steps_interval ({validation.eval_steps_interval}) needs held-out clips; name a dataset in "
            "eval_dataset_id, or add one of dataset_type eval"
        )


def _never_used(trained: Sequence[PlannedDataset], max_steps: int | None) -> Iterator[Notice]:
    """Datasets that the run ends before."""
    for dataset in trained:
        first = dataset.entry.start_step
        if max_steps is not None and first > max_steps:
            fact = f"start_step ({first}) comes after the last step ({max_steps}): nothing of it is trained"
            yield Notice(dataset.entry.id, fact, "lower start_step or train longer")
