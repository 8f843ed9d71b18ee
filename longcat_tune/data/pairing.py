"""Start images of image-to-video clips: the same relative path and name in a conditioning dataset.

Works on manifests; no file is opened here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from longcat_tune.data.images import IMAGE_EXTENSIONS
from longcat_tune.data.listing import without_extension
from longcat_tune.data.manifest import Manifest
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import ClipRecord, Refusal


class StartImages:
    """The images of all conditioning datasets of one entry, by relative path without extension."""

    def __init__(self, conditioning: Sequence[Manifest]) -> None:
        self.folders = [manifest.folder for manifest in conditioning]
        self.images: dict[str, list[ClipRecord | Refusal]] = defaultdict(list)
        for manifest in conditioning:
            for record in manifest.records:
                self.images[without_extension(record.name, kind="image")].append(record)
            for refusal in manifest.refusals:
                name = refusal.path.relative_to(manifest.folder).as_posix()
                self.images[without_extension(name, kind="image")].append(refusal)

    def paired(self, record: ClipRecord) -> ClipRecord:
        """A clip with its start image; without conditioning datasets as it was: its own first frame is meant.

        Raises:
            UnusableFileError: there is no such image, it is unusable, or there are several.
        """
        if not self.folders:
            return record
        stem = without_extension(record.name, kind=record.kind)
        match self.images.get(stem, []):
            case []:
                endings = ",".join(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)
                tried = " and ".join(f"{folder / stem}.{{{endings}}}" for folder in self.folders)
                remedy = "add it, or leave conditioning_data out to start from the clip's own first frame"
                raise UnusableFileError(record.path, f"has no conditioning image; tried {tried}", remedy)
            case [ClipRecord() as image]:
                return replace(record, conditioning=image)
            case [Refusal() as refusal]:
                raise UnusableFileError(record.path, blamed_on(refusal), refusal.remedy)
            case several:
                names = ", ".join(str(image.path) for image in several)
                reason = f"has {len(several)} conditioning images: {names}"
                raise UnusableFileError(record.path, reason, "keep one of them")


def blamed_on(image: Refusal) -> str:
    """The reason of a clip that cannot be used because of its start image."""
    return f"has an unusable conditioning image: {image.path} {image.reason}"
