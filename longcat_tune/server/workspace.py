"""The folders that the web UI may see, and the one way from what a person wrote to a path in them.

Knows nothing of requests. Every path of a request goes through `Workspace.inside`.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from longcat_tune.server.replies import Refusal

Kind = Literal["any", "file", "folder"]

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,58}[a-z0-9])?")
"""What runs and dataset files may be called: harmless in a path, a URL and a command."""
NAME_LENGTH = 60
LONGEST_PATH = 4096
NO_TEXT = {"Cc", "Cs"}
"""Unicode's control characters and halves of characters; names of files may have any other."""

URL_OR_PATH = re.compile(
    r"""(?P<url>\b(?!file:)[a-z][a-z0-9+.-]*://\S*)
      | (?P<quote>['"])(?:file://)?[/~][^'"\n]*(?P=quote)
      | file://[^\s'"]*
      | (?<![\w./])~?/[^\s'"<>|,;:()\[\]]+
      | (?<!\w)[A-Za-z]:\\[^\s'"<>|,;]*""",
    re.VERBOSE,
)
HIDDEN_PATH = "…"


class Workspace:
    """The folders whose files may be read; the first is home, where all is written.

    Args:
        roots: resolved folders; none may be missing when it is asked for.

    Attributes:
        roots: the same.
        home: the first of them.
        state: what the server keeps for itself: jobs, previews, uploads, thumbnails.
        runs: a folder for every run.
        datasets: a file for every dataset.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self.home = self.roots[0]
        self.state = self.home / ".longcat-tune"
        self.runs = self.home / "runs"
        self.datasets = self.home / "datasets"
        self._labels = _labels(self.roots[1:])

    def inside(self, text: str, *, kind: Kind = "any", must_exist: bool = True) -> Path:
        """The path that somebody means, with symlinks followed.

        Args:
            text: relative to home, as `shown` writes it, or absolute.
            kind: what it must be if it exists.
            must_exist: refuse what does not exist.

        Raises:
            Refusal: the text is no path, leads out of the workspace, names nothing or something of another
                kind. Whether something exists outside is not told.
        """
        path = self._resolved(text)
        if not any(path.is_relative_to(root) for root in self.roots):
            raise Refusal(403, "app.outside_workspace", name=_short(text))
        try:
            exists, is_file, is_folder = path.exists(), path.is_file(), path.is_dir()
        except OSError:  # too long a name, or a folder that may not be entered
            exists = is_file = is_folder = False
        if not exists:
            if must_exist:
                raise Refusal(404, "app.no_such_file", name=_short(text))
        elif (kind == "file" and not is_file) or (kind == "folder" and not is_folder):
            raise Refusal(400, f"app.not_a_{kind}", name=_short(text))
        return path

    def _resolved(self, text: str) -> Path:
        if not text or len(text) > LONGEST_PATH or not _is_text(text):
            raise Refusal(400, "app.no_path", name=_short(text))
        # By its letters first: `..` behind a symlink then cannot ask whether something exists elsewhere.
        path = Path(os.path.normpath(text))
        if not path.is_absolute():
            label = path.parts[0] if path.parts and not text.startswith("./") else ""
            root = self._labels.get(label)
            path = root.joinpath(*path.parts[1:]) if root is not None else self.home / path
            if ".." in path.parts:
                raise Refusal(403, "app.outside_workspace", name=_short(text))
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:  # too long a name; symlinks in a ring
            raise Refusal(400, "app.no_path", name=_short(text)) from error

    def shown(self, path: Path) -> str:
        """A path as people see it, which `inside` reads back: relative to home, or `<root name>/...`.

        Args:
            path: inside a root.
        """
        if path.is_relative_to(self.home):
            text = path.relative_to(self.home).as_posix()
            return f"./{text}" if text.split("/")[0] in self._labels else text
        for label, root in self._labels.items():
            if path.is_relative_to(root):
                return (Path(label) / path.relative_to(root)).as_posix()
        raise Refusal(403, "app.outside_workspace", name=path.name)

    def run_folder(self, run: str) -> Path:
        """The folder of a run, which need not exist.

        Raises:
            Refusal: the id is none, or a symlink leads elsewhere.
        """
        return self.inside(f"./runs/{checked_name(run)}", kind="folder", must_exist=False)

    def dataset_file(self, name: str) -> Path:
        """The file of a dataset, which need not exist.

        Raises:
            Refusal: the name is none, or a symlink leads elsewhere.
        """
        return self.inside(f"./datasets/{checked_name(name)}.json", kind="file", must_exist=False)

    def without_paths(self, text: str) -> str:
        """A text of a subprocess for somebody on another machine: no absolute path of this one is left."""
        for label, root in [("", self.home), *self._labels.items()]:
            text = text.replace(f"{root}/", f"{label}/" if label else "")
            whole = re.compile(rf"{re.escape(str(root))}(?![\w-]|\.\w)")
            text = (label or ".").join(whole.split(text))
        return URL_OR_PATH.sub(lambda found: found[0] if found["url"] else HIDDEN_PATH, text)


def checked_name(text: str) -> str:
    """The name itself, of a run or a dataset.

    Raises:
        Refusal: it is no such name.
    """
    if NAME.fullmatch(text) is None:
        raise Refusal(404, "app.no_name", name=_short(text))
    return text


def slug(text: str) -> str:
    """A name that goes anywhere, of what somebody wrote: a-z, 0-9 and dashes, at most 60."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:NAME_LENGTH].strip("-") or "unnamed"


def _labels(roots: Sequence[Path]) -> dict[str, Path]:
    """What each root but home is called, unlike the others."""
    labels: dict[str, Path] = {}
    for root in roots:
        name, number = root.name or "root", 1
        while (label := name if number == 1 else f"{name}-{number}") in labels:
            number += 1
        labels[label] = root
    return labels


def _is_text(text: str) -> bool:
    return not any(unicodedata.category(one) in NO_TEXT for one in text)


def _short(text: str) -> str:
    """As it may stand in a message."""
    printable = "".join(one if _is_text(one) else "?" for one in text)
    return printable if len(printable) <= 80 else f"{printable[:79]}…"
