"""Looks at datasets one after the other: what is wrong with one becomes a fault of it and hides no other.

Knows how files are found and planned; knows nothing of steps, renders or weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.run import RunConfig
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.planning import DatasetPlan, plan_dataset
from longcat_tune.data.sources import SourceIndex
from longcat_tune.errors import UserError
from longcat_tune.runs.problems import reason_and_remedy
from longcat_tune.types import Refusal

HELD_OUT_SEED = 0
"""Of windows and crops that are drawn for held-out clips, whatever the run's seed: their losses and renders
can be compared between runs."""


@dataclass(frozen=True, slots=True)
class SourceIndexes:
    """What is remembered of source files, one index per cache folder, each opened once."""

    opened: dict[Path, SourceIndex] = field(default_factory=dict)

    def of(self, folder: Path) -> SourceIndex:
        """The index of a cache folder."""
        if folder not in self.opened:
            self.opened[folder] = SourceIndex(folder)
        return self.opened[folder]

    def keep(self) -> None:
        """Write down what was learned where that is possible."""
        for index in self.opened.values():
            index.keep()


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Looks at the datasets of a run.

    Attributes:
        config: of the run.
        entries: of its data file, by id.
        indexes: what was learned earlier, and what is learned now.
    """

    config: RunConfig
    entries: Mapping[str, DatasetEntry]
    indexes: SourceIndexes = field(default_factory=SourceIndexes)

    def manifest(self, entry: DatasetEntry) -> Manifest:
        """What the dataset's folder holds; whatever stops the search is a fault of it."""
        data = self.config.data
        try:
            return scan(
                entry,
                index=self.index_of(entry.id),
                backend=data.video_backend,
                seed=self._seed(entry),
                framerate=data.framerate,
            )
        except UserError as error:
            return Manifest(entry.id, entry.instance_data_dir, (), (), 0, faults=(_fault(entry, error),))

    def plan(self, entry: DatasetEntry, manifest: Manifest, partners: Sequence[Manifest]) -> DatasetPlan:
        """What becomes of its files.

        Args:
            entry: the dataset.
            manifest: its files.
            partners: the start images that it names. When one of the folders is at fault, that is told once
                and not again for every clip.
        """
        known = any(partner.faults for partner in partners)
        return plan_dataset(
            entry,
            manifest,
            framerate=self.config.data.framerate,
            seed=self._seed(entry),
            conditioning=() if known else partners,
        )

    def is_held_out(self, entry: DatasetEntry) -> bool:
        """Whether a dataset of clips is kept from training."""
        return entry.dataset_type == "eval" or entry.id == self.config.validation.eval_dataset_id

    def index_of(self, dataset_id: str) -> SourceIndex:
        """What is remembered of the dataset's files."""
        folder = self.entries[dataset_id].cache_dir_vae
        assert folder is not None  # the loader fills it in
        return self.indexes.of(folder)

    def _seed(self, entry: DatasetEntry) -> int:
        return HELD_OUT_SEED if self.is_held_out(entry) else self.config.training.seed


def _fault(entry: DatasetEntry, error: UserError) -> Refusal:
    reason, remedy = reason_and_remedy(str(error))
    return Refusal(entry.id, entry.instance_data_dir, f"cannot be examined: {reason}", remedy)
