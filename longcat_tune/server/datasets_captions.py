"""The caption beside a clip: read with its version, written only where nobody else has written since.

Knows where a caption file lies and nothing of datasets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from longcat_tune.files import write_atomically
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace

ABSENT = "absent"
"""The version of a file that is not there."""
LONGEST_CAPTION = 20_000
"""Letters; the model reads 512 tokens."""
LARGEST_FILE = 1_000_000
"""Bytes of a text file that is shown."""

_one_writer = Lock()


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption file as it is on the disk.

    Attributes:
        text: all of it; empty where there is none.
        version: by which a later change shows.
        problem: key of a sentence that says why it cannot be shown; None where it can.
    """

    text: str
    version: str
    problem: Literal["caption_not_text", "caption_too_long", "caption_link"] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.version != ABSENT


class CaptionChangedError(Exception):
    """Somebody else wrote the file meanwhile.

    Attributes:
        now: what it holds.
    """

    def __init__(self, now: Caption) -> None:
        super().__init__(now.version)
        self.now = now


def caption_file(clip: Path, *, is_folder: bool) -> Path:
    """Where the caption of a clip is looked for.

    Args:
        clip: the video or image, or the folder of numbered pictures.
        is_folder: whether it is the latter, whose name has no ending to leave out.
    """
    return clip.with_name(f"{clip.name if is_folder else clip.name.rpartition('.')[0]}.txt")


def read_caption(path: Path) -> Caption:
    """Read a caption file, which need not be there; no link is followed."""
    if path.is_symlink():
        return Caption("", "link", "caption_link")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return Caption("", ABSENT)
    except OSError:
        return Caption("", "unreadable", "caption_not_text")
    version = hashlib.sha256(data).hexdigest()[:16]
    if len(data) > LARGEST_FILE:
        return Caption("", version, "caption_too_long")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Caption("", version, "caption_not_text")
    return Caption(text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n"), version)


def save_caption(workspace: Workspace, path: Path, text: str, *, version: str) -> Caption:
    """Write a caption beside its clip, complete or not at all.

    Args:
        workspace: which the file must be in.
        path: the caption file.
        text: all of it.
        version: of the file that was edited.

    Returns:
        What the file holds now.

    Raises:
        CaptionChangedError: the file is another one by now.
        Refusal: the text is too long or holds control characters, or the file is a link or outside the
            workspace.
        UserError: the file cannot be written.
    """
    if len(text) > LONGEST_CAPTION:
        raise Refusal(413, "datasets.caption_long", count=len(text), most=LONGEST_CAPTION)
    plain = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if any(ord(one) < 32 and one not in "\n\t" for one in plain):
        raise Refusal(400, "datasets.caption_control")
    if path.is_symlink() or not any(path.parent.resolve().is_relative_to(root) for root in workspace.roots):
        raise Refusal(403, "datasets.caption_link", name=path.name)
    with _one_writer:
        now = read_caption(path)
        if now.version != version:
            raise CaptionChangedError(now)
        write_atomically(path, lambda part: part.write_text(f"{plain}\n", encoding="utf-8", newline="\n"))
        return read_caption(path)
