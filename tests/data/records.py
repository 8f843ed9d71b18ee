"""Records, manifests and entries made by hand, and what planning makes of them; no file is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.planning import DatasetPlan, plan_dataset
from longcat_tune.types import ClipRecord, PlannedClip, Refusal, Stamp

FOLDER = Path("/clips")
STILLS = Path("/stills")


def record(
    name: str = "clip.mp4", *, frames: int = 93, rate: float = 30, size=(832, 480), **changes
) -> ClipRecord:
    width, height = size
    values = {
        "dataset_id": "clips", "path": FOLDER / name, "name": name, "kind": "video", "captions": ("a clip",),
        "width": width, "height": height, "source_frames": frames, "seconds": frames / rate,
        "stamp": Stamp(1, 1),
    }  # fmt: skip
    return ClipRecord(**values | changes)


def image(name: str, folder: Path = FOLDER, **changes) -> ClipRecord:
    return record(name, frames=1, **{"kind": "image", "path": folder / name, "seconds": 0.0} | changes)


def manifest(
    *records: ClipRecord, folder: Path = FOLDER, refusals: tuple[Refusal, ...] = (), **values
) -> Manifest:
    return Manifest("clips", folder, records, refusals, found=len(records) + len(refusals), **values)


def entry(*, video: dict | None = None, **keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=FOLDER, video=video or {}, **keys)


def plan_of(
    *records: ClipRecord,
    framerate: float = 30,
    seed: int = 42,
    conditioning: Sequence[Manifest] = (),
    **keys,
) -> DatasetPlan:
    return plan_dataset(
        entry(**keys), manifest(*records), framerate=framerate, seed=seed, conditioning=conditioning
    )


def planned(clip: ClipRecord, **settings) -> PlannedClip:
    """The only clip that becomes of a record."""
    plan = plan_of(clip, **settings)
    assert plan.refusals == ()
    assert (plan.found, plan.used, len(plan.clips)) == (1, 1, 1)
    return plan.clips[0]


def refusal_of(clip: ClipRecord, **settings) -> str:
    """Why a record is refused and what to do."""
    plan = plan_of(clip, **settings)
    assert plan.clips == ()
    assert len(plan.refusals) == plan.found == 1
    assert plan.refusals[0].path == clip.path
    return f"{plan.refusals[0].reason}; {plan.refusals[0].remedy}"
