"""The form of a run: what the schema says of every key, and how texts of fields become values of a config.

Knows of particular keys only where on the form they stand. Reads no file and knows no browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic_core import PydanticUndefined

from longcat_tune.config import describe
from longcat_tune.config.problems import choices_of, shown
from longcat_tune.config.run import Key, keys

Control = Literal["select", "line", "area"]

MANAGED_KEYS = frozenset({"output_dir"})
"""Keys that the web UI decides: they are on no form and in no text that is edited."""
CHOSEN_FIRST = ("model_family", "model_flavour", "data_backend_config")
"""Keys that stand above the sections."""
ESSENTIALS = (
    "max_train_steps",
    "num_train_epochs",
    "learning_rate",
    "lora_rank",
    "validation_prompt",
    "validation_resolution",
    "validation_num_video_frames",
    "validation_step_interval",
    "checkpoint_step_interval",
)
"""Keys that most runs set; they stand in a section of their own, before those of the schema."""
LONG_TEXTS = frozenset({"validation_prompt", "validation_negative_prompt"})

_INPUT_MODES = {"whole number": "numeric", "number": "decimal"}


@dataclass(frozen=True, slots=True)
class FormField:
    """One key on the form.

    Attributes:
        key: of config.json.
        kind: what a value is, such as `whole number`.
        control: a choice, a line of text, or several lines.
        input_mode: which keyboard a phone shows.
        help: what the key means.
        accepts: what a value is and its bounds, or the choices.
        default: as a config would hold it; the placeholder.
        choices: of a `select`, without the default; or suggestions for a line.
    """

    key: str
    kind: str
    control: Control
    input_mode: str
    help: str
    accepts: str
    default: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FormSection:
    """Fields that stand together.

    Attributes:
        name: of the schema's section, or `essentials`.
        fields: in the schema's order.
    """

    name: str
    fields: tuple[FormField, ...]


@cache
def form_sections() -> tuple[FormSection, ...]:
    """Every key that is not managed or chosen first, once: the essentials, then the schema's sections."""
    placed = {*MANAGED_KEYS, *CHOSEN_FIRST, *ESSENTIALS}
    names = dict.fromkeys(section for section, _ in keys().values())
    parts = {"essentials": ESSENTIALS} | {
        name: tuple(key for key, (section, _) in keys().items() if section == name and key not in placed)
        for name in names
    }
    return tuple(FormSection(name, tuple(map(form_field, part))) for name, part in parts.items())


def form_field(key: str) -> FormField:
    """What the form needs to know of one key."""
    field = keys()[key].field
    kind, default = describe.kind(field), describe.default(field)
    words = ("true", "false") if kind == "true or false" else tuple(choices_of(field))
    selected = kind in {"choice", "true or false"}
    several = kind == "object" or key in LONG_TEXTS
    return FormField(
        key=key,
        kind=kind,
        control="select" if selected else "area" if several else "line",
        input_mode=_INPUT_MODES.get(kind, "text"),
        help=field.description or "",
        accepts=describe.accepts(field),
        default=default,
        choices=tuple(word for word in words if not selected or word != default),
    )


def values_of_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    """What a config holds when the form says this: the keys that differ from their defaults.

    Args:
        fields: text by key; an empty one is the default. A text that is no number where one is needed stays
            a text, so that the schema can say what is wrong with it.
    """
    given = {key: fields[key].strip() for key in keys() if key in fields}
    values = {key: _value(text, keys()[key]) for key, text in given.items() if text}
    return changed_values(values)


def changed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null, empty or the default; the rest in the schema's order."""
    return {key: values[key] for key in keys() if key in values and not _is_default(values[key], keys()[key])}


def fields_of_values(values: Mapping[str, Any]) -> dict[str, str]:
    """The text of every field of the form; empty where the config does not set the key."""
    known = [key for key in keys() if key not in MANAGED_KEYS]
    return {key: text_of(values[key]) if key in values else "" for key in known}


def text_of(value: object) -> str:
    """A value as a field shows it; lists of plain words with commas, as the schema reads them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(map(_is_plain, value)):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _is_plain(part: object) -> bool:
    return isinstance(part, str) and re.fullmatch(r"[^,\[\s][^,]*", part) is not None


def _value(text: str, key: Key) -> Any:
    """A field's text as JSON would hold it, where it can be read so."""
    kind = describe.kind(key.field)
    if kind == "true or false":
        return {"true": True, "false": False}.get(text, text)
    if kind in _INPUT_MODES or (kind in {"list", "object"} and text[0] in "[{"):
        return _parsed(text)
    return text


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # 1e3 steps are 1000, as a config would hold them.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_default(value: object, key: Key) -> bool:
    """Whether a config says nothing by holding this value."""
    default = key.field.default
    if value is None or value == "":
        return True
    if default is None or default is PydanticUndefined:
        return False
    if isinstance(value, bool) is not isinstance(default, bool):
        return False
    if isinstance(value, list):
        return ", ".join(map(str, value)) == shown(default)
    return value == default or (isinstance(value, str) and value == shown(default))
