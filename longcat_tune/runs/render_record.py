"""What a folder of renders says about itself: renders.json, by which it is found done, and shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
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
    """The renders of one set of requests with one set of weights.

    Attributes:
        wanted: identity of weights, settings and requests; JSON values.
        videos: those made, in the order of the requests.
        failures: the others.
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

    def is_done(self, folder: Path, wanted: Mapping[str, Any]) -> bool:
        """Whether the folder shows all that is wanted already."""
        files = (folder / name for video in self.videos for name in (video.file, video.strip))
        shown = (*files, folder / GRID_NAME)
        return not self.failures and self.wanted == wanted and all(path.is_file() for path in shown)

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
