"""The file that lists the datasets of a run: read, judged by the config's own loader, written when sound.

Knows of particular keys only which hold paths. Knows no requests and opens no clip.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.foreign import DATASET_KEYS, NESTED_KEYS, ForeignKeys
from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.config.schema import section_of
from longcat_tune.errors import ConfigError
from longcat_tune.files import explained_disk_errors, write_atomically
from longcat_tune.server.loader_warnings import loader_warnings
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import NAME, Workspace

LONGEST_TEXT = 500_000
"""Letters; a thousand entries have fewer."""
VERSION_DIGITS = 16
OUTSIDE = (
    "must lead to a place inside the workspace that is there; choose one, or start the server with another "
    "--workspace folder"
)
"""The same whether something is there or not: what exists elsewhere is not told."""

_one_writer = Lock()


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file as it is on the disk.

    Attributes:
        name: of the dataset, without folder or ending.
        path: of the file.
        text: as written.
        entries: in our spelling of the keys; empty when no list can be read from the text.
        commented: it has comments, which only an edit of its text keeps.
    """

    name: str
    path: Path
    text: str
    entries: tuple[dict[str, Any], ...]
    commented: bool

    @property
    def version(self) -> str:
        """By which a later change of the file shows."""
        return version_of(self.text)

    def entry(self, identifier: str) -> dict[str, Any]:
        """The entry of this id, as written.

        Raises:
            Refusal: there is none.
        """
        for entry in self.entries:
            if entry.get("id") == identifier:
                return entry
        raise Refusal(404, "datasets.no_entry", entry=identifier[:80], name=self.name)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a data file.

    Attributes:
        entry: id of the entry that it is about; empty when it is about the whole file.
        key: dotted key of the entry; empty when it is about all of it.
        text: what, which rule, which remedy.
    """

    entry: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What the loader thinks of a text.

    Attributes:
        entries: with defaults and found folders; empty when there are problems.
        problems: all of them.
        notices: what has no effect.
    """

    entries: tuple[DatasetEntry, ...]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]


def version_of(text: str) -> str:
    """A short name of a text, by which another one shows."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:VERSION_DIGITS]


def list_names(workspace: Workspace) -> list[str]:
    """The names of all data files."""
    names = (path.stem for path in workspace.datasets.glob("*.json") if path.is_file())
    return sorted(name for name in names if NAME.fullmatch(name))


def read_data_file(workspace: Workspace, name: str) -> DataFile:
    """Read one data file.

    Raises:
        Refusal: there is none of this name, or it is no text.
    """
    path = workspace.dataset_file(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise Refusal(404, "datasets.no_file", name=name) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(409, "datasets.unreadable_file", name=name) from error
    entries = tuple(entries_in(path))
    return DataFile(name, path, text, entries, commented=bool(entries) and not _is_plain(text))


def entries_in(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, in our spelling of the keys; none where no list can be read from it."""
    try:
        raw = read_jsonc(path)
    except (ConfigError, RecursionError):
        return []
    entries = [_spelled(entry, DatasetEntry.model_fields, DATASET_KEYS) for entry in _objects(raw)]
    for entry in entries:
        for key, foreign in NESTED_KEYS.items():
            section = section_of(DatasetEntry.model_fields[key])
            if isinstance(entry.get(key), dict) and section is not None:
                entry[key] = _spelled(entry[key], section.model_fields, foreign)
    return entries


def text_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """Entries as a file holds them."""
    return json.dumps(list(entries), indent=2, ensure_ascii=False) + "\n"


def judge(workspace: Workspace, name: str, text: str) -> Judged:
    """Let the loader say what it thinks of a text, and see that all its paths stay inside the workspace.

    Args:
        workspace: which all paths must be in.
        name: of the dataset; relative folders start beside its file.
        text: JSON, with comments if need be.

    Raises:
        Refusal: the text is too long.
        UserError: nothing can be written beside the file.
    """
    if len(text) > LONGEST_TEXT:
        raise Refusal(413, "datasets.too_long", count=len(text), most=LONGEST_TEXT)
    # Beside the file, because that is where relative folders are looked for.
    draft = workspace.datasets / f".{name}.{token_hex(4)}.draft"
    with explained_disk_errors(draft):
        workspace.datasets.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", errors="replace")
    try:
        return judge_file(workspace, name, draft)
    finally:
        draft.unlink(missing_ok=True)


def judge_file(workspace: Workspace, name: str, path: Path) -> Judged:
    """The same of a file that is there.

    Args:
        workspace: which all paths must be in.
        name: of the dataset, for messages.
        path: of the file.
    """
    try:
        text_of(entries_in(path)).encode()
        with loader_warnings() as told:
            entries = load_datasets(_run(path), config_dir=path.parent)
    except UnicodeError:
        return _unsound("holds halves of letters, as \\ud800 is one; write whole ones")
    except ConfigError as error:
        return Judged((), _problems(str(error), path, name), ())
    except (RecursionError, OverflowError):
        return _unsound("is nested too deeply, or holds a number too large; write it plainly")
    outside = tuple(problem for entry in entries for problem in _outside(entry, workspace))
    notices = tuple(notice.removeprefix(f"{path}: ") for notice in told)
    return Judged(() if outside else entries, outside, notices)


def folder_of(entry: DatasetEntry, workspace: Workspace) -> Path | None:
    """The real folder of an entry that was judged; None where there is none."""
    try:
        # A folder that is not beside the data file is looked for where commands run.
        return workspace.inside(str(workspace.home / entry.instance_data_dir), kind="folder")
    except Refusal:
        return None


def write_data_file(workspace: Workspace, name: str, text: str, *, version: str | None) -> None:
    """Write a text that was judged sound.

    Args:
        workspace: where.
        name: of the dataset.
        text: of the file.
        version: of the file that was edited; None: there must be none yet.

    Raises:
        Refusal: the file is another one by now.
        UserError: it cannot be written.
    """
    path = workspace.dataset_file(name)
    with _one_writer:
        if version is None and path.exists():
            raise Refusal(409, "datasets.name_taken", name=name)
        if version is not None and read_data_file(workspace, name).version != version:
            raise Refusal(409, "datasets.file_changed", name=name)
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def delete_data_file(workspace: Workspace, name: str, *, version: str) -> None:
    """Delete a data file.

    Args:
        workspace: where.
        name: of the dataset.
        version: of the file that was seen.

    Raises:
        Refusal: there is none of this name, or it is another one by now.
    """
    with _one_writer:
        data = read_data_file(workspace, name)
        if data.version != version:
            raise Refusal(409, "datasets.file_changed", name=name)
        data.path.unlink(missing_ok=True)


def _unsound(what: str) -> Judged:
    return Judged((), (Problem("", "", what),), ())


def _run(draft: Path) -> Any:
    """A run with defaults that has this data file."""
    return load_run_config(None, {"data_backend_config": str(draft)})


def _is_plain(text: str) -> bool:
    """Whether it is JSON without comments."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _objects(raw: object) -> list[dict[str, Any]]:
    return [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []


def _spelled(raw: Mapping[str, Any], known: Mapping[str, Any], foreign: ForeignKeys) -> dict[str, Any]:
    """An object in our spelling; of a key that is given twice both stay, for the loader to complain of."""
    result: dict[str, Any] = {}
    for name, value in raw.items():
        plain = name.removeprefix("--").replace("-", "_")
        key = foreign.aliases.get(plain, plain)
        result[key if key in known and key not in result and key not in raw.keys() - {name} else name] = value
    return result


def _problems(message: str, draft: Path, name: str) -> tuple[Problem, ...]:
    """The loader's message as one problem each; it begins with the file, then the entry, then the key."""
    head, *listed = message.split("\n  ")
    return tuple(_problem(one, draft, name) for one in listed or [head])


def _problem(message: str, draft: Path, name: str) -> Problem:
    text = message.removeprefix(f"{draft}: ").replace(str(draft), f"{name}.json")
    found = re.match(r"(?P<entry>[\w.-]+|entry \d+): (?:(?P<object>[a-z_]+): )?(?P<key>[a-z_][\w.]*)", text)
    if found is None or found["key"].split(".")[0] not in DatasetEntry.model_fields:
        named = re.match(r"([\w.-]+): ", text)
        return Problem(named[1] if named else "", "", text)
    key = f"{found['object']}.{found['key']}" if found["object"] else found["key"]
    return Problem(found["entry"], key, text)


def _outside(entry: DatasetEntry, workspace: Workspace) -> Iterator[Problem]:
    """Paths that lead out of the workspace, wherever they may start from."""
    for key, path, starts in _paths(entry, workspace):
        try:
            for start in starts:
                workspace.inside(str(start / path), must_exist=False)
        except Refusal:
            yield Problem(entry.id, key, f"{entry.id}: {key} {OUTSIDE}")


def _paths(entry: DatasetEntry, workspace: Workspace) -> Iterator[tuple[str, Path, tuple[Path, ...]]]:
    """Each path of an entry: its key, itself, and the folders it may be relative to."""
    beside = (workspace.datasets, workspace.home)
    if entry.dataset_type != "text_embeds":
        yield "instance_data_dir", entry.instance_data_dir, beside
    for key, cache in (("cache_dir", entry.cache_dir), ("cache_dir_vae", entry.cache_dir_vae)):
        if cache is not None:
            yield key, cache, (workspace.home,)
    if entry.caption_table is not None:
        folders = tuple(start / entry.instance_data_dir for start in beside)
        yield "caption_table.path", entry.caption_table.path, (*folders, *beside)
