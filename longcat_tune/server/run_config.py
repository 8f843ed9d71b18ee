"""A run's config between its text, its values and its file: what is wrong with it, and where its paths lead.

The schema judges; nothing here knows what a key means beyond which ones hold paths. Knows no requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from longcat_tune.config import describe
from longcat_tune.config.checking import Findings, sort_keys
from longcat_tune.config.foreign import CONFIG_KEYS
from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import keys
from longcat_tune.errors import ConfigError
from longcat_tune.server.loader_warnings import loader_warnings
from longcat_tune.server.replies import Refusal
from longcat_tune.server.schema_form import MANAGED_KEYS, changed_values
from longcat_tune.server.texts import Language, translate
from longcat_tune.server.workspace import Workspace

NAME = "config.json"
LONGEST_TEXT = 32 * 1024
"""Letters; a config with every key written out has 6,000."""

MOST_PROBLEMS = 50
"""Beyond these a list is no longer read."""
DEEPEST = 64
"""Brackets inside brackets; the parsers end in an error of the interpreter's own some hundreds further."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WORDS = {"resume_from_checkpoint": {"latest", "none"}}
"""Values of keys of paths that are none."""
_LISTS = frozenset({"data_backend_config", "user_prompt_library"})
"""Keys of files that name more files. Pages write a .json only after its paths were judged to stay inside the
workspace, but a caption, which is a .txt, with any content."""
_WEIGHTS = "pretrained_"
"""How the keys begin that hold a folder or the id of a model on the hub."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        key: of the config that it is about; empty when it is about all of it.
        text: what, which rule, which remedy.
    """

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What a text of a config says, and what is wrong with it.

    Attributes:
        values: by our spelling of the keys, without those at their default; None when the text is no object.
        others: keys that are not ours, as written.
        problems: all of them.
        notices: what has no effect, or is taken as something else.
    """

    values: dict[str, Any] | None
    others: dict[str, Any]
    problems: tuple[Finding, ...]
    notices: tuple[str, ...]


def text_of_values(values: Mapping[str, Any]) -> str:
    """The config as a file holds it."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def judge(text: str, language: Language = "en") -> Judged:
    """Read the text of a config, and let the schema say what it thinks of it.

    Args:
        text: JSON, with comments if need be.
        language: of what is said here; the schema speaks English.
    """
    if len(text) > LONGEST_TEXT:
        return _no_config(translate(language, "new_run.too_long", count=len(text), most=LONGEST_TEXT))
    if _depth(text) > DEEPEST:
        return _no_config(translate(language, "new_run.too_deep", most=DEEPEST))
    if _whole(text) != text:
        return _no_config(translate(language, "new_run.half_letters"))
    with TemporaryDirectory() as folder, loader_warnings() as notices:
        path = Path(folder, NAME)
        path.write_text(text, encoding="utf-8")
        raw = _object_in(path)
        problems = _problems_of(path)
    told = tuple(_whole(notice.replace(str(path), NAME)) for notice in notices)
    if raw is None:
        return Judged(None, {}, tuple(problems), told)
    if _whole(written := json.dumps(raw, ensure_ascii=False)) != written:
        return _no_config(translate(language, "new_run.half_letters"))
    values, others = _sorted(raw)
    for key in sorted(MANAGED_KEYS & values.keys()):
        problems.append(Finding(key, translate(language, "new_run.managed_key", key=key)))
    return Judged(changed_values(values), others, tuple(problems), told)


def placed(values: Mapping[str, Any], workspace: Workspace, results: Path) -> dict[str, Any]:
    """The config as it is written into the folder of a run: all paths absolute.

    So the run means the same wherever it is started from.

    Args:
        values: of `judge`; relative paths start from the workspace.
        workspace: which all paths must be in.
        results: folder of what the run leaves.

    Raises:
        Refusal: a path leads out of the workspace.
    """
    result = dict(values)
    for key, text in _paths(values, workspace):
        result[key] = str(workspace.inside(text, must_exist=False))
    result["output_dir"] = str(results)
    return {key: result[key] for key in keys() if key in result}


def path_problems(values: Mapping[str, Any], workspace: Workspace, language: Language) -> list[Finding]:
    """What is wrong with the paths of a config; what is missing inside the workspace is for the check to say.

    Args:
        values: of `judge`.
        workspace: which all paths must be in.
        language: of the sentences.
    """
    found = []
    for key, text in _paths(values, workspace):
        try:
            path = workspace.inside(text, must_exist=False)
        except Refusal as refusal:
            found.append(Finding(key, f"{key}: {refusal.told(language)}"))
            continue
        if key in _LISTS and path.suffix != ".json":
            found.append(Finding(key, translate(language, "new_run.not_json", key=key, name=path.name)))
    return found


def shown_values(written: Mapping[str, Any], workspace: Workspace, run_folder: Path) -> dict[str, Any]:
    """The config of a run as the form shows it: without what is managed, its paths as people see them.

    Args:
        written: as the file holds it, with our keys only.
        workspace: for its names.
        run_folder: where the config lies; relative paths start there, else in the workspace.
    """
    values = {key: value for key, value in changed_values(written).items() if key not in MANAGED_KEYS}
    for key, text in _paths(values, workspace):
        candidates = [run_folder / text, workspace.home / text]
        path = next((one for one in candidates if one.exists()), candidates[-1]).resolve()
        if any(path.is_relative_to(root) for root in workspace.roots):
            values[key] = workspace.shown(path)
    return values


def is_hub_id(text: str, workspace: Workspace) -> bool:
    """Whether a text is the id of a model on the hub: owner/name, and nothing here, which would win.

    Args:
        text: names weights.
        workspace: may have a folder of that name, in any root.
    """
    if HUB_ID.fullmatch(text) is None:
        return False
    try:
        workspace.inside(text)
    except Refusal as refusal:
        return refusal.status == 404
    return False


def read_written(path: Path) -> dict[str, Any]:
    """The keys of a config file that are ours, as written.

    Raises:
        ConfigError: the file cannot be read, or holds no object.
    """
    raw = _object_in(path)
    if raw is None:
        raise ConfigError(f"{path}: must hold one object; put the keys between {{ and }}")
    return _sorted(raw)[0]


def _no_config(reason: str) -> Judged:
    return Judged(None, {}, (Finding("", reason),), ())


def _depth(text: str) -> int:
    """How many brackets are open at once; those in strings count, as some of these are read as JSON, too."""
    steps = ({"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(one, 0) for one in text)
    return max(accumulate(steps), default=0)


def _whole(text: str) -> str:
    """The text without halves of letters, which escapes can hold but no file or reply."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _problems_of(path: Path) -> list[Finding]:
    try:
        load_run_config(path, {})
    except ConfigError as error:
        head, *listed = str(error).replace(str(path), NAME).split("\n  ")
        return [_finding(message) for message in (listed or [head])[:MOST_PROBLEMS]]
    return []


def _finding(message: str) -> Finding:
    """`config.json: lora_rank (0) must be ...` as a key and the sentence about it."""
    text = _whole(message.removeprefix(f"{NAME}: "))
    word = re.match(r"[A-Za-z_][\w-]*", text)
    key = word[0].replace("-", "_") if word else ""
    return Finding(CONFIG_KEYS.aliases.get(key, key) if key in _known() else "", text)


@cache
def _known() -> frozenset[str]:
    return frozenset({*keys(), *CONFIG_KEYS.aliases})


def _object_in(path: Path) -> dict[str, Any] | None:
    try:
        raw = read_jsonc(path)
    except ConfigError:
        return None
    return raw if isinstance(raw, dict) else None


def _sorted(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our keys in our spelling, and the others as written."""
    ours: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in raw.items():
        known = sort_keys({name: value}, known=keys(), foreign=CONFIG_KEYS, where=NAME, findings=Findings())
        for key in known:
            ours[key] = None if value == "null" else value
        if not known:
            others[name] = value
    return ours, others


def _paths(values: Mapping[str, Any], workspace: Workspace) -> Iterator[tuple[str, str]]:
    """The keys that hold a path, with it."""
    for key, value in values.items():
        if not isinstance(value, str) or value in _WORDS.get(key, ()):
            continue
        weights = key.startswith(_WEIGHTS)
        if weights and is_hub_id(value, workspace):
            continue
        if weights or key in _WORDS or describe.kind(keys()[key].field) == "path":
            yield key, value
