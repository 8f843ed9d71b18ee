"""A scan of one folder as a dataset, and what it says in short."""

from __future__ import annotations

from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.sources import SourceIndex


def entry_of(folder: Path, **keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=folder, **({"caption_strategy": None} | keys))


def clips_in(folder: Path, *, index: SourceIndex | None = None, **keys) -> Manifest:
    manifest = scan(entry_of(folder, **keys), index=index)
    assert manifest.found == len(manifest.records) + len(manifest.refusals)
    return manifest


def names(manifest: Manifest) -> list[str]:
    return [record.name for record in manifest.records]


def refused(manifest: Manifest) -> dict[str, str]:
    return {refusal.path.name: refusal.reason for refusal in manifest.refusals}


def told(manifest: Manifest) -> list[str]:
    return [f"{notice.dataset_id}: {notice.fact}; {notice.remedy}" for notice in manifest.notices]


def faults(manifest: Manifest) -> list[str]:
    return [f"{fault.dataset_id}: {fault.path} {fault.reason}; {fault.remedy}" for fault in manifest.faults]
