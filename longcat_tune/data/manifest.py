"""What a dataset's folder holds: every clip or image, examined, and a reason for each that cannot be used.

Opens files only to learn their size, length and captions; knows nothing of buckets or training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.captions import Captions
from longcat_tune.data.examine import Look, look_at_files
from longcat_tune.data.images import IMAGE_EXTENSIONS
from longcat_tune.data.listing import TAKEN, VIDEO_EXTENSIONS, FoundFile, Listing, list_files, printable
from longcat_tune.data.naming import some
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.sources import SourceIndex
from longcat_tune.data.video import VideoBackend
from longcat_tune.types import ClipRecord, Notice, Refusal

PICTURES = "folders of numbered pictures"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one dataset.

    Attributes:
        dataset_id: the entry they belong to.
        folder: instance_data_dir.
        records: usable files, by name.
        refusals: the others.
        found: how many files there are, a folder of numbered pictures as one; none is left out of the two
            lists.
        faults: what is wrong with the dataset as a whole; path is its folder or its table.
        notices: what is allowed and may not be meant.
    """

    dataset_id: str
    folder: Path
    records: tuple[ClipRecord, ...]
    refusals: tuple[Refusal, ...]
    found: int
    faults: tuple[Refusal, ...] = ()
    notices: tuple[Notice, ...] = ()


def scan(
    entry: DatasetEntry,
    *,
    index: SourceIndex | None = None,
    backend: VideoBackend = "auto",
    seed: int = 0,
    framerate: float = 30.0,
) -> Manifest:
    """Examine every file below instance_data_dir that the dataset type takes.

    Hidden files and folders are left out, and links to folders, which a notice names. What is learned goes
    into the index as it comes, so that a scan that was killed goes on where it was.

    Args:
        entry: the dataset.
        index: what is known of files from earlier; what it knows is not opened again.
        backend: who will read the videos; what it cannot read is refused.
        seed: of shuffled captions.
        framerate: pictures per second of a folder of them, unless video.frames_fps says otherwise.

    Raises:
        ConfigError: decord or a table's format is asked for and its package not installed.
    """
    listing = list_files(entry.instance_data_dir, entry.dataset_type)
    faults = list(_folder_faults(entry, listing))
    captions = None
    if entry.dataset_type != "conditioning":
        try:
            captions = Captions.of_dataset(entry, seed=seed)
        except UnusableFileError as error:
            faults.append(error.refusal(entry.id))
    paths = [listing.base / file.name for file in listing.files]
    looks = look_at_files(listing.files, paths, title=f"Examining {entry.id}", index=index, backend=backend)
    fps = entry.video.frames_fps or framerate
    results = [
        _judged(file, path, look, entry, captions, fps)
        for file, path, look in zip(listing.files, paths, looks, strict=True)
    ]
    names = [file.name for file in listing.files]
    return Manifest(
        dataset_id=entry.id,
        folder=entry.instance_data_dir,
        records=tuple(result for result in results if isinstance(result, ClipRecord)),
        refusals=tuple(result for result in results if isinstance(result, Refusal)),
        found=len(results),
        faults=tuple(faults),
        notices=(*_folder_notices(entry, listing), *(captions.notices(names) if captions else ())),
    )


def _folder_faults(entry: DatasetEntry, listing: Listing) -> Iterator[Refusal]:
    """What keeps the folder from being looked at, or that it holds nothing."""
    remedy = "create it, correct instance_data_dir, or change its permissions"
    for folder, words in listing.unreadable:
        yield Refusal(entry.id, folder, f"cannot be read as a folder ({words})", remedy)
    if not listing.files and not listing.unreadable:
        endings = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS, "sequence": (PICTURES,)}
        wanted = [ending for kind in TAKEN[entry.dataset_type] for ending in endings[kind]]
        remedy = f"put some there ({', '.join(wanted)}) or correct instance_data_dir"
        yield Refusal(entry.id, entry.instance_data_dir, f"holds no {entry.dataset_type} file", remedy)


def _folder_notices(entry: DatasetEntry, listing: Listing) -> Iterator[Notice]:
    if listing.others:
        count, kind = len(listing.others), entry.dataset_type
        fact = f"files that dataset_type {kind} does not take: {count} ({_some(listing.others)})"
        remedy = "to use them, make them a dataset of their own kind"
        if "sequence" in TAKEN[kind]:
            remedy += "; the frames of a clip must be alone in a folder and numbered, as in 0001.png"
        yield Notice(entry.id, fact, remedy)
    if listing.unknown:
        count, names = len(listing.unknown), _some(listing.unknown)
        fact = f"files of no kind that is known here, which are not used: {count} ({names})"
        yield Notice(entry.id, fact, "to use them, convert videos to mp4 and images to png")
    if listing.linked_folders:
        count, names = len(listing.linked_folders), _some(listing.linked_folders)
        fact = f"links to folders, which are not followed: {count} ({names})"
        yield Notice(entry.id, fact, "to use their files, make the folders datasets of their own")


def _some(names: Sequence[str]) -> str:
    return some(map(printable, names))


def _judged(
    file: FoundFile,
    path: Path,
    look: Look,
    entry: DatasetEntry,
    captions: Captions | None,
    fps: float,
) -> ClipRecord | Refusal:
    """A record, or one line with everything that is wrong with a file, so that nobody has to check twice."""
    texts: tuple[str, ...] = ()
    troubles = [look] if isinstance(look, UnusableFileError) else []
    if captions is not None and file.trouble is None:
        try:
            texts = captions.of(path, file.name, kind=file.kind)
        except UnusableFileError as error:
            troubles.append(error)
    if troubles or isinstance(look, UnusableFileError):
        return _refusal(entry.id, troubles)
    return ClipRecord(
        dataset_id=entry.id,
        path=path,
        name=file.name,
        kind=file.kind,
        captions=texts,
        width=look.width,
        height=look.height,
        source_frames=look.frames,
        seconds=look.frames / fps if file.kind == "sequence" else look.seconds,
        stamp=file.stamp,
    )


def _refusal(dataset_id: str, troubles: Sequence[UnusableFileError]) -> Refusal:
    path = troubles[0].path
    reasons = [error.reason if error.path == path else f"{error.path} {error.reason}" for error in troubles]
    return Refusal(dataset_id, path, ", and ".join(reasons), "; ".join(error.remedy for error in troubles))
