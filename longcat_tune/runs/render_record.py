"""What a folder of renders says about itself: renders.json, by which it is found done, and shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat_tune.errors import DeviceError
from longcat_tune.files import write_json_atomically
from longcat_tune.runs.cache_jobs import CachedRequest

RECORD_NAME = "renders.json"
GRID_NAME = "grid.png"


@dataclass(frozen=True, slots=True)
class ShownVideo:
    """One finished render.

    Attributes:
        key: of everything it depends on but the weights: renders of one key can be compared.
        name: of its request.
        prompt: what it was to show.
        file: the mp4, in the folder of the record.
        strip: a png of a few frames across.
        cells: how many.
        width: in pixels.
        height: in pixels.
        num_frames: in the mp4.
        fps: of the mp4.
        details: of the request, for people; one short text each.
        numbers: measured of it; see sampling.numbers.
        seconds: that it took.
    """

    key: str
    name: str
    prompt: str
    file: str
    strip: str
    cells: int
    width: int
    height: int
    num_frames: int
    fps: float
    details: tuple[str, ...]
    numbers: Mapping[str, float]
    seconds: float

    @property
    def stem(self) -> str:
        """The file_stem of its request."""
        return Path(self.file).stem


@dataclass(frozen=True, slots=True)
class FailedRender:
    """One that could not be made.

    Attributes:
        name: of its request.
        reason: in one line.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class RenderRecord:
    """The renders with one set of weights.

    Attributes:
        wanted: identity of the weights, and of settings and requests that were rendered last; JSON values.
        videos: all that the folder holds: of earlier requests, then of the last ones in their order.
        failures: those of the last requests that could not be made.
    """

    wanted: Mapping[str, Any]
    videos: tuple[ShownVideo, ...]
    failures: tuple[FailedRender, ...] = ()

    def write(self, folder: Path) -> None:
        """Put it into the folder.

        Raises:
            UserError: the folder cannot be written to.
        """
        shown = {
            "videos": [dataclasses.asdict(video) for video in self.videos],
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
        }
        write_json_atomically(folder / RECORD_NAME, {**self.wanted, **shown})

    def is_done(self, folder: Path, weights: str, keys: Collection[str]) -> bool:
        """Whether the folder shows these renders of these weights already, and all else that is named.

        Args:
            folder: of the record.
            weights: their identity.
            keys: from `comparison_key`, one per request.
        """
        there = self.there(folder)
        whole = not self.failures and there == self.videos and (folder / GRID_NAME).is_file()
        return whole and self.is_of(weights) and {video.key for video in there}.issuperset(keys)

    def is_of(self, weights: str) -> bool:
        """Whether its renders were made with these weights."""
        return self.wanted.get("weights") == weights

    def besides(self, folder: Path, weights: str, stems: Collection[str]) -> tuple[ShownVideo, ...]:
        """Renders of the same weights that are there and stay when others are made.

        Args:
            folder: of the record.
            weights: identity of those that are rendered with.
            stems: of the files to be made; they replace earlier ones.
        """
        replaced = {stem.casefold() for stem in stems}
        there = self.there(folder) if self.is_of(weights) else ()
        return tuple(video for video in there if video.stem.casefold() not in replaced)

    def remove_others(self, folder: Path, before: Sequence[ShownVideo]) -> None:
        """Delete the files of earlier renders that it does not name."""
        named = {video.stem.casefold() for video in self.videos}
        for video in before:
            if video.stem.casefold() not in named:
                for file in (video.file, video.strip):
                    # By name alone: a record that somebody wrote must not reach other folders.
                    (folder / Path(file).name).unlink(missing_ok=True)

    def there(self, folder: Path) -> tuple[ShownVideo, ...]:
        """Those made whose files are still in the folder."""
        return tuple(
            video
            for video in self.videos
            if (folder / video.file).is_file() and (folder / video.strip).is_file()
        )

    def require_complete(self) -> None:
        """Fail where a render did.

        Raises:
            DeviceError: names those that could not be made.
        """
        if self.failures:
            told = "; ".join(f"{failure.name}: {failure.reason}" for failure in self.failures)
            total = len(self.videos) + len(self.failures)
            raise DeviceError(
                f"{len(self.failures)} of {total} renders failed: {told}. The others are there; the same "
                "command tries them all again"
            )

    def paths(self, folder: Path) -> list[Path]:
        """The files for people to look at: the mp4s, then the grid."""
        grid = [GRID_NAME] if self.videos else []
        return [folder / name for name in [video.file for video in self.videos] + grid]


def read_record(folder: Path) -> RenderRecord | None:
    """Read a folder's record; None when it has none that can be read."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        videos = tuple(
            ShownVideo(**video | {"details": tuple(video["details"])}) for video in content.pop("videos")
        )
        failures = tuple(FailedRender(**failure) for failure in content.pop("failures"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return RenderRecord(content, videos, failures)


def wanted_renders(
    requests: Sequence[CachedRequest], *, weights: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Identity of a set of renders, as JSON values.

    Args:
        requests: what is rendered.
        weights: identity of base and adapter.
        settings: what else the pictures depend on.
    """
    renders = [request_identity(cached) for cached in requests]
    return _as_json({"weights": weights, "settings": settings, "renders": renders})


def request_identity(cached: CachedRequest) -> dict[str, Any]:
    """What a render depends on beside weights and settings, as JSON values."""
    # Cache names are content keys: they stand for the prompt's encoding and the start image's pixels.
    keys = {"prompt_key": cached.prompt_path.name, "start_key": cached.start and cached.start.path.name}
    return _as_json(dataclasses.asdict(cached.request) | keys)


def comparison_key(cached: CachedRequest, settings: Mapping[str, Any]) -> str:
    """Name everything that a render depends on but the weights."""
    text = json.dumps([request_identity(cached), _as_json(settings)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(dict(value), default=str))
    return content
