"""What the pages of datasets share: the thumbnails and the checks, and one dataset as they see it.

Knows no requests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.server.datasets_captions import Caption, caption_file, read_caption
from longcat_tune.server.datasets_check import Checked, DatasetChecks
from longcat_tune.server.datasets_clips import Card, Paths, Report, cards, read_report
from longcat_tune.server.datasets_file import DataFile, Judged, folder_of, judge_file, read_data_file
from longcat_tune.server.replies import Refusal
from longcat_tune.server.settings import Settings
from longcat_tune.server.thumbnails import Index, Pictured, Thumbnails
from longcat_tune.server.workspace import Workspace

logger = logging.getLogger(__name__)

WITHOUT_CAPTIONS = ("conditioning", "text_embeds")


@dataclass(frozen=True, slots=True)
class CaptionView:
    """The caption of one clip as its card shows it.

    Attributes:
        source: the entry's caption_strategy; empty where there are no captions.
        file: the text file beside the clip, whether or not it is read.
        caption: what that file holds.
    """

    source: str
    file: Path
    caption: Caption

    @property
    def editable(self) -> bool:
        """Whether training reads that file, and it can be shown whole."""
        return self.source == "textfile" and self.caption.problem is None

    @property
    def unread(self) -> bool:
        """Whether there is such a file that training does not read."""
        return self.source != "textfile" and self.caption.exists


@dataclass(frozen=True)
class Dataset:
    """One data file with all that is known of it.

    Attributes:
        data: the file.
        judged: what the loader thinks of it.
        folders: of its entries by id, resolved; without those that are missing.
        checked: what the last check said.
        told: makes texts of the command line fit for people.
    """

    data: DataFile
    judged: Judged
    folders: Mapping[str, Path]
    checked: Checked
    told: Paths

    @cached_property
    def report(self) -> Report | None:
        """The last check by file; None: there was none, or it gave no report."""
        if self.checked.report is None:
            return None
        try:
            return read_report(self.checked.report, self.folders, self.told)
        except (KeyError, TypeError, IndexError):
            logger.warning("the report of dataset %s cannot be read; it is checked again", self.data.name)
            return None

    def entry(self, identifier: str) -> tuple[DatasetEntry, Path]:
        """An entry that is sound, and its folder.

        Raises:
            Refusal: there is none of this id, it is disabled or unsound, or its folder is missing.
        """
        for entry in self.judged.entries:
            if entry.id == identifier and identifier in self.folders:
                return entry, self.folders[identifier]
        raise Refusal(404, "datasets.no_clips_of", entry=identifier[:80], name=self.data.name)


@dataclass(frozen=True)
class DatasetWork:
    """What is made in the background for all datasets of a server.

    Attributes:
        workspace: where they are.
        thumbnails: of all folders.
        checks: of all data files.
    """

    workspace: Workspace
    thumbnails: Thumbnails
    checks: DatasetChecks

    @classmethod
    def of(cls, settings: Settings, workspace: Workspace) -> DatasetWork:
        """Nothing is being made yet.

        Args:
            settings: say how the tool is run.
            workspace: where the datasets are.
        """
        thumbnails = Thumbnails(settings.command, workspace.state / "thumbnails")
        return cls(workspace, thumbnails, DatasetChecks(workspace, settings.command))

    async def close(self) -> None:
        """End what is being made; it goes on with the next visit."""
        await self.thumbnails.close()
        await self.checks.close()

    def dataset(self, name: str, framerate: float) -> Dataset:
        """One dataset as it is now.

        Args:
            name: of the data file.
            framerate: of the run that it is judged for.

        Raises:
            Refusal: there is none of this name.
        """
        data = read_data_file(self.workspace, name)
        judged = judge_file(self.workspace, name, data.path)
        folders = {}
        for entry in judged.entries:
            folder = folder_of(entry, self.workspace)
            if folder is not None:
                folders[entry.id] = folder
        written = [(one.instance_data_dir, folders[one.id]) for one in judged.entries if one.id in folders]
        checked = self.checks.last(name, framerate)
        return Dataset(data, judged, folders, checked, Paths(self.workspace, written))

    def index(self, entry: DatasetEntry, folder: Path) -> Index | None:
        """The thumbnails of an entry's folder; None where nothing is known yet.

        Args:
            entry: decides whether numbered pictures are one clip.
            folder: of the entry.
        """
        return self.thumbnails.index(folder, apart=is_apart(entry))

    def cards(self, dataset: Dataset, identifier: str) -> list[Card]:
        """Every file of an entry.

        Args:
            dataset: it belongs to.
            identifier: of the entry.

        Raises:
            Refusal: there is no such entry with a folder.
        """
        entry, folder = dataset.entry(identifier)
        return cards(entry, self.index(entry, folder), dataset.report)

    def picture(self, dataset: Dataset, identifier: str, clip: str) -> Pictured:
        """One file of an entry, which is still below its folder.

        Args:
            dataset: it belongs to.
            identifier: of the entry.
            clip: id of the file.

        Raises:
            Refusal: there is none, or a link leads it elsewhere.
        """
        entry, folder = dataset.entry(identifier)
        index = self.index(entry, folder)
        picture = index.by_id.get(clip) if index is not None else None
        if picture is not None:
            real = picture.file.resolve()
            if real.exists() and real.is_relative_to(folder):
                return picture
        raise Refusal(404, "datasets.no_clip", clip=clip[:80], entry=identifier[:80])


def is_apart(entry: DatasetEntry) -> bool:
    """Whether numbered pictures are images of their own in a dataset of this type."""
    return entry.dataset_type != "video"


def caption_of(entry: DatasetEntry, picture: Pictured) -> CaptionView:
    """The caption of a clip.

    Args:
        entry: that the clip belongs to.
        picture: the clip.
    """
    none = entry.dataset_type in WITHOUT_CAPTIONS or entry.caption_strategy is None
    source = "" if none else str(entry.caption_strategy)
    file = caption_file(picture.file, is_folder=picture.kind == "sequence")
    return CaptionView(source, file, read_caption(file))
