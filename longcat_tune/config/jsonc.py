"""Reads JSON with comments and trailing commas; knows nothing of what the file should hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longcat_tune.errors import ConfigError

WRITE_ONE = "let `longcat-tune init CLIPS_DIR` write one"


class _DuplicateKeyError(Exception):
    """A key stands twice in one object; the parsers would keep the last in silence."""


def read_jsonc(path: Path) -> object:
    """Read a file of JSON, JSON with comments, or JSON5.

    Raises:
        ConfigError: when the file cannot be read or parsed, with line and column, or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; check the path, or {WRITE_ONE}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if not text.strip():
        raise ConfigError(f"{path}: is empty; {WRITE_ONE}")
    try:
        return parse_jsonc(text)
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error} is given twice in one object; keep one") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {_position(str(error))}") from error


def parse_jsonc(text: str) -> object:
    """Parse strictly first: the lenient parser takes over a second for 3,000 entries."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        # Loaded only for files with comments: plain files start faster without it.
        import json5

        return json5.loads(text, object_pairs_hook=_object)


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _DuplicateKeyError(key)
        values[key] = value
    return values


def _position(message: str) -> str:
    """`<string>:3 Unexpected "x" at column 5` in our words."""
    match = re.fullmatch(r"<string>:(\d+) Unexpected (.+) at column (\d+)", message, flags=re.DOTALL)
    if match is None:
        return f"{message[:1].lower()}{message[1:]}"
    line, found, column = match.groups()
    return (
        f"line {line}, column {column}: unexpected {found}; "
        "look for a missing comma, quote or bracket there or just before"
    )
