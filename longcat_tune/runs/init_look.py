"""What lies in a folder of clips, as `init` needs to know it; decides nothing and writes no config.

What is learned of the files is kept for the first run, which then opens none of them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry, DatasetType
from longcat_tune.data.listing import list_files
from longcat_tune.data.manifest import Manifest, scan
from longcat_tune.data.pairing import StartImages
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.sources import SourceIndex
from longcat_tune.errors import DataError
from longcat_tune.runs.init_captions import CaptionChoice, choose_captions
from longcat_tune.types import ClipRecord, Refusal

CLIPS, REGULARISATION = "clips", "regularisation"
"""Ids of the datasets of clips to learn from, and of clips that shall stay as they are."""
START_FOLDERS = ("images", "first_frames", "first-frames", "start_images", "start-images", "conditioning")
"""Names of folders, inside the clips' or beside it, that are looked at for start images."""


@dataclass(frozen=True, slots=True)
class StartFolder:
    """A folder of start images.

    Attributes:
        path: the folder.
        paired: clips that have exactly one usable image there.
    """

    path: Path
    paired: int


@dataclass(frozen=True, slots=True)
class FolderContent:
    """What a folder holds.

    Attributes:
        folder: absolute.
        videos: usable clips, folders of numbered pictures among them.
        images: usable images that are not frames of a clip.
        refusals: files that cannot be used.
        video_captions: where the clips' captions are; None without clips.
        image_captions: the same for images.
        start_folders: where some of the clips have start images.
        loose_images: images that cannot be told from the frames of clips by a dataset over this folder.
    """

    folder: Path
    videos: tuple[ClipRecord, ...]
    images: tuple[ClipRecord, ...]
    refusals: tuple[Refusal, ...]
    video_captions: CaptionChoice | None
    image_captions: CaptionChoice | None
    start_folders: tuple[StartFolder, ...]
    loose_images: int


def look_into(folder: Path, *, memory: Path, start_images: bool, clips_id: str = CLIPS) -> FolderContent:
    """Examine every file of a folder.

    Args:
        folder: of clips, images or both.
        memory: folder of the latent caches, with one folder per dataset in it.
        start_images: look for folders of start images, too.
        clips_id: of the dataset that its clips will be.

    Raises:
        DataError: the folder cannot be read, holds nothing that can be used, or start images that would be
            taken for the frames of a clip.
    """
    listing = list_files(folder, "video")
    videos = _scanned(folder, "video", clips_id, memory)
    sequences = any(record.kind == "sequence" for record in videos.records)
    loose = len(listing.others)
    images = None if sequences or not loose else _scanned(folder, "image", "images", memory)
    records = images.records if images is not None else ()
    refusals = (*videos.refusals, *(images.refusals if images is not None else ()))
    if not videos.records and not records:
        raise DataError(_nothing_usable(folder, videos, refusals))
    if start_images:
        _require_no_clips_of_start_images(videos.records)
    return FolderContent(
        folder=folder.absolute(),
        videos=videos.records,
        images=records,
        refusals=refusals,
        video_captions=choose_captions(folder, videos.records) if videos.records else None,
        image_captions=choose_captions(folder, records) if records else None,
        start_folders=tuple(_start_folders(folder, videos.records, memory)) if start_images else (),
        loose_images=loose if sequences else 0,
    )


def _scanned(folder: Path, dataset_type: DatasetType, dataset_id: str, memory: Path) -> Manifest:
    """Its files without captions, which are looked for apart."""
    entry = DatasetEntry(
        id=dataset_id, dataset_type=dataset_type, instance_data_dir=folder, caption_strategy=None
    )
    return scan(entry, index=SourceIndex(memory / dataset_id))


def _nothing_usable(folder: Path, videos: Manifest, refusals: Sequence[Refusal]) -> str:
    if refusals:
        first = refusals[0]
        unusable = f"{folder}: none of its {len(refusals)} files can be used"
        return f"{unusable}; {first.path} {first.reason}; {first.remedy}"
    return "; ".join(f"{fault.path} {fault.reason}; {fault.remedy}" for fault in videos.faults)


def _require_no_clips_of_start_images(videos: Sequence[ClipRecord]) -> None:
    for record in videos:
        if record.kind == "sequence" and record.path.name in START_FOLDERS:
            msg = (
                f"{record.path}: holds numbered pictures and nothing else, which a dataset of clips takes "
                "for the frames of one; if they are start images, put the folder beside that of the clips"
            )
            raise DataError(msg)


def _start_folders(folder: Path, videos: Sequence[ClipRecord], memory: Path) -> Iterator[StartFolder]:
    """Folders beside or inside that hold an image of the same name for at least one of the clips."""
    beside = [folder.parent / name for name in START_FOLDERS]
    named = [folder.parent / f"{folder.name}{dash}{name}" for name in START_FOLDERS for dash in "-_"]
    inside = [folder / name for name in START_FOLDERS]
    for path in (*named, *inside, *beside):
        if path.is_dir() and path != folder:
            images = StartImages([_scanned(path, "conditioning", "start-images", memory)])
            paired = sum(_has_partner(images, record) for record in videos)
            if paired:
                yield StartFolder(path.absolute(), paired)


def _has_partner(images: StartImages, record: ClipRecord) -> bool:
    try:
        images.paired(record)
    except UnusableFileError:
        return False
    return True
