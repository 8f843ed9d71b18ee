"""Previews on the disk: each a folder with what was asked, its config, its start frame and its results.

How far one is, its job and its results tell; nothing of that is kept here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from longcat_tune.files import write_json_atomically
from longcat_tune.server.preview_request import PreviewRequest, build_config, command_word, command_words
from longcat_tune.server.replies import Refusal
from longcat_tune.server.uploads import uploaded
from longcat_tune.server.workspace import Workspace

ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}[0-9a-f]{4}")
"""Date, time, the second's millionths, and chance."""

RECORD, CONFIG, START, RESULTS = "preview.json", "config.json", "start.png", "results"

TEXTS = "texts"
"""Folder, beside the previews, of encoded prompts: another seed or LoRA then needs no text encoder."""
TEXTS_DATASET = [{"id": TEXTS, "dataset_type": "text_embeds"}]


class SubmittedJob(Protocol):
    """A job as far as previews know it."""

    @property
    def id(self) -> str:
        """Its name."""


class TakesJobs(Protocol):
    """Where previews are sent to."""

    def submit(
        self, *, kind: Literal["train", "validate"], run: str, argv: Sequence[str], device: str | None = None
    ) -> SubmittedJob:
        """Put a job at the end of the queue."""


@dataclass(frozen=True, slots=True)
class Preview:
    """One preview, whatever has become of it.

    Attributes:
        id: its folder's name; later ones sort after earlier ones.
        created: seconds since 1970.
        job: id of the job that renders it.
        request: what was asked.
        argv: words of the command line after the program.
        has_start: whether it begins with a start frame.
    """

    id: str
    created: float
    job: str
    request: PreviewRequest
    argv: tuple[str, ...]
    has_start: bool

    @property
    def command(self) -> str:
        """The line that renders it again, in the workspace's folder."""
        return shlex.join(["longcat-tune", *self.argv])


_PREVIEWS = TypeAdapter(Preview)


class PreviewStore:
    """The previews of a workspace.

    Args:
        workspace: has them in its state.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folder = workspace.state / "previews"

    def add(self, request: PreviewRequest, jobs: TakesJobs) -> Preview:
        """Write down what is asked, and put it into the queue.

        Args:
            request: from a form.
            jobs: takes the job.

        Raises:
            Refusal: the request will not do; nothing is left on the disk.
            UserError: the folder cannot be written to or the disk is full.
        """
        now = time.time()
        second = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        name = f"{second}-{int(now % 1 * 1e6):06d}{token_hex(2)}"
        config = build_config(request, self._workspace)
        start = self._start_of(request)
        folder = self._folder / name
        config |= {
            "output_dir": command_word(folder / RESULTS, self._workspace),
            "data_backend_config": f"../{TEXTS}.json",
        }
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            self._write_texts()
            write_json_atomically(folder / CONFIG, config)
            own_start = None if start is None else Path(shutil.copyfile(start, folder / START))
            argv = command_words(request, folder / CONFIG, own_start, self._workspace)
            job = jobs.submit(kind="validate", run="", argv=argv)
            preview = Preview(name, now, job.id, request, tuple(argv), start is not None)
            write_json_atomically(folder / RECORD, asdict(preview))
            undo.pop_all()
        return preview

    def list(self) -> Iterator[Preview]:
        """All previews, newest first."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        for name in sorted(filter(ID.fullmatch, names), reverse=True):
            if (preview := self._read(name)) is not None:
                yield preview

    def get(self, preview_id: str) -> Preview:
        """One preview.

        Raises:
            Refusal: there is none of that id.
        """
        preview = self._read(preview_id) if ID.fullmatch(preview_id) else None
        if preview is None:
            raise Refusal(404, "preview.no_preview", name=preview_id[:80])
        return preview

    def delete(self, preview: Preview) -> None:
        """Remove a preview and everything that was rendered for it.

        Raises:
            Refusal: somebody has put a link in the place of its folder.
        """
        folder = self.results(preview).parent
        # First the record: half of it deleted is no preview any more.
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder)

    def results(self, preview: Preview) -> Path:
        """The folder that a preview's job writes to, resolved; it need not exist yet.

        Raises:
            Refusal: it leads elsewhere.
        """
        folder = self._folder.resolve() / preview.id
        results = folder / RESULTS
        if results.resolve() != results:
            raise Refusal(403, "app.outside_workspace", name=preview.id)
        return results

    def start(self, preview: Preview) -> Path:
        """The start frame of a preview that has one.

        Raises:
            Refusal: it has none.
        """
        path = self.results(preview).parent / START
        if not preview.has_start or path.is_symlink() or not path.is_file():
            raise Refusal(404, "preview.no_upload")
        return path

    def _start_of(self, request: PreviewRequest) -> Path | None:
        """The start frame that a form names: an upload, or an earlier preview whose frame is used again."""
        name = request.fields["start"]
        if not name:
            return None
        return self.start(self.get(name)) if ID.fullmatch(name) else uploaded(self._workspace, name)

    def _read(self, name: str) -> Preview | None:
        try:
            preview = _PREVIEWS.validate_json((self._folder / name / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        return preview if preview.id == name else None

    def _write_texts(self) -> None:
        path = self._folder / f"{TEXTS}.json"
        if not path.is_file():
            place = command_word(self._folder / TEXTS, self._workspace)
            write_json_atomically(path, [one | {"cache_dir": place} for one in TEXTS_DATASET])
