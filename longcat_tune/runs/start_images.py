"""Entries of start images: how many of their files a clip is paired with, and which belong to none.

Knows nothing of how clips find their images; the plan of the clips says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.naming import some
from longcat_tune.types import Notice, PlannedClip, Refusal


@dataclass(frozen=True, slots=True)
class StartImageSet:
    """One entry of start images with what became of its files.

    Attributes:
        entry: as written.
        found: how many images there are.
        used: those that a clip is paired with.
        refusals: those that cannot be read.
        faults: what keeps it as a whole from being used.
        notices: what its owner should know.
    """

    entry: DatasetEntry
    found: int
    used: int
    refusals: tuple[Refusal, ...]
    faults: tuple[Refusal, ...]
    notices: tuple[Notice, ...]

    @classmethod
    def of(cls, entry: DatasetEntry, manifest: Manifest, clips: Iterable[PlannedClip]) -> StartImageSet:
        """Count the images, and name those without a clip: often a clip got another name.

        Args:
            entry: the start images.
            manifest: their files.
            clips: of all datasets that name the entry.
        """
        paired = {clip.record.conditioning.path for clip in clips if clip.record.conditioning is not None}
        unused = [record.name for record in manifest.records if record.path not in paired]
        notices = manifest.notices
        if unused:
            fact = f"start images that belong to no clip: {len(unused)} of {manifest.found} ({some(unused)})"
            notices += (Notice(entry.id, fact, "give each the name of its clip, or take it out"),)
        return cls(
            entry=entry,
            found=manifest.found,
            used=len(manifest.records) - len(unused),
            refusals=manifest.refusals,
            faults=manifest.faults,
            notices=notices,
        )
