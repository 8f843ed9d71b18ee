"""The form of one dataset: what the schema says of every key of an entry, and texts of fields as its values.

Knows of particular keys only where on the form they stand. Reads no file and knows no browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longcat_tune.config import describe
from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.problems import choices_of
from longcat_tune.config.schema import FromRun, section_of

SHARES = ("t2v", "i2v", "continuation")
"""Keys of task_mix, the one object that is no section."""
NULL = "null"
"""Chosen for caption_strategy, where null says something else than nothing."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "basics": ("id", "dataset_type", "instance_data_dir", "disabled"),
    "frames": (
        "video.num_frames",
        "video.bucket_strategy",
        "allow_short",
        "video.min_frames",
        "video.max_frames",
        "video.frame_interval",
        "video.clip_selection",
        "video.frames_fps",
    ),
    "sizes": (
        "resolution",
        "resolution_type",
        "bucket_table",
        "crop",
        "crop_style",
        "crop_aspect",
        "crop_aspect_buckets",
        "minimum_image_size",
        "minimum_aspect_ratio",
        "maximum_aspect_ratio",
        "max_upscale_threshold",
    ),
    "captions": (
        "caption_strategy",
        "instance_prompt",
        "disable_multiline_split",
        "empty_caption",
        "caption_table.path",
        "caption_table.filename_column",
        "caption_table.caption_column",
        "caption_table.fallback_caption_column",
        "caption_shuffle.enable",
        "caption_shuffle.count",
        "caption_shuffle.seed",
        "caption_shuffle.split_on",
        "caption_shuffle.position_start",
        "caption_shuffle.include_original",
    ),
    "tasks": (
        "is_i2v",
        "conditioning_data",
        "video.continuation_frames",
        *(f"task_mix.{name}" for name in SHARES),
    ),
    "often": (
        "repeats",
        "probability",
        "max_num_samples",
        "start_step",
        "end_step",
        "is_regularisation_data",
    ),
    "caches": ("type", "cache_dir_vae", "cache_dir"),
}
"""Every key once."""
OF_START_IMAGES = ("basics",)
OF_TEXT_FEATURES = ("basics", "caches")


@dataclass(frozen=True, slots=True)
class EntryField:
    """One key on the form.

    Attributes:
        key: dotted.
        kind: what a value is, such as `whole number`.
        default: as a file would hold it; the placeholder.
        choices: of a choice, or of true and false; none where text is written.
        help: what the key means.
        accepts: what a value is and its bounds, or the choices.
        optional: stands in an object that may be left out, so that a value at its default says something.
    """

    key: str
    kind: str
    default: str
    choices: tuple[str, ...]
    help: str
    accepts: str
    optional: bool

    def is_plain(self, text: str) -> bool:
        """Whether a box says no more than its default."""
        return self.kind == "true or false" and not self.optional and text == self.default

    @property
    def input_mode(self) -> str:
        """Which keyboard a phone shows."""
        return {"whole number": "numeric", "number": "decimal"}.get(self.kind, "text")


def groups_for(dataset_type: object) -> tuple[str, ...]:
    """The groups of keys that an entry of this type reads."""
    if dataset_type == "conditioning":
        return OF_START_IMAGES
    return OF_TEXT_FEATURES if dataset_type == "text_embeds" else tuple(GROUPS)


@cache
def fields_of(group: str) -> tuple[EntryField, ...]:
    """The fields of one group."""
    return tuple(_field(key) for key in GROUPS[group])


def keys() -> Iterator[str]:
    """Every key of an entry, dotted."""
    for key, field in DatasetEntry.model_fields.items():
        section = section_of(field)
        if key == "task_mix":
            yield from (f"{key}.{name}" for name in SHARES)
        elif section is not None:
            yield from (f"{key}.{inner}" for inner in section.model_fields)
        else:
            yield key


def texts_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The text of every field; empty where the entry does not set the key."""
    texts = {}
    for key in keys():
        top, _, inner = key.partition(".")
        if not inner:
            texts[key] = _text(entry[top], key) if top in entry else ""
            continue
        held = entry.get(top)
        if inner == "enable" and held == {}:
            texts[key] = "true"  # an empty object shuffles as well
        else:
            texts[key] = _text(held[inner], key) if isinstance(held, dict) and inner in held else ""
    if isinstance(video := entry.get("video"), dict) and "is_i2v" in video and not texts["is_i2v"]:
        texts["is_i2v"] = _text(video["is_i2v"], "is_i2v")
    return texts


def entry_of(texts: Mapping[str, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds when the form says this: the keys that differ from their defaults.

    Args:
        texts: by key; an empty one is the default. A text that is no number where one is needed stays a
            text, so that the schema can say what is wrong with it. Keys that are not there stay as they are.
        before: the entry until now; what is not ours stays.
    """
    entry = {key: dict(value) if isinstance(value, dict) else value for key, value in before.items()}
    if "is_i2v" in texts and isinstance(entry.get("video"), dict):
        entry["video"].pop("is_i2v", None)
    for key in keys():
        if key in texts:
            _put(entry, _field(key), texts[key].strip())
    first = [key for key in ("id", "dataset_type", "instance_data_dir") if key in entry]
    return {key: entry[key] for key in first} | entry


def _put(entry: dict[str, Any], field: EntryField, text: str) -> None:
    """Set one key to what its field says, or take it out where it says nothing."""
    top, _, inner = field.key.partition(".")
    holder = entry
    if inner:
        held = entry.get(top)
        if held is not None and not isinstance(held, dict):
            return  # no object: the loader says so
        holder = entry.setdefault(top, {}) if text or held is not None else {}
    name = inner or top
    value = _value(text, field)
    if not text or (not field.optional and _is_default(value, field.key)):
        holder.pop(name, None)
    else:
        holder[name] = value
    if inner and not entry.get(top, True):
        del entry[top]


def _field(key: str) -> EntryField:
    top, _, inner = key.partition(".")
    definition = _definition(key)
    if top == "task_mix":
        help_text = DatasetEntry.model_fields[top].description or ""
        return EntryField(key, "number", NULL, (), help_text, "number, >= 0", optional=True)
    kind = describe.kind(definition)
    words = ("true", "false") if kind == "true or false" else tuple(choices_of(definition))
    if key == "caption_strategy":
        words = (*words, NULL)
    return EntryField(
        key=key,
        kind=kind,
        default=describe.default(definition),
        choices=words,
        help=definition.description or "",
        accepts=describe.accepts(definition),
        optional=bool(inner) and top != "video",
    )


def _definition(key: str) -> FieldInfo:
    top, _, inner = key.partition(".")
    field = DatasetEntry.model_fields[top]
    section = section_of(field)
    return section.model_fields[inner] if inner and section is not None else field


def _is_default(value: object, key: str) -> bool:
    """Whether an entry says nothing by holding this value."""
    field = _definition(key)
    if any(isinstance(mark, FromRun) for mark in field.metadata) or field.default is PydanticUndefined:
        return False
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return value == default and isinstance(value, bool) is isinstance(default, bool)


def _value(text: str, field: EntryField) -> Any:
    """A field's text as JSON would hold it, where it can be read so."""
    if field.key == "caption_strategy" and text == NULL:
        return None
    match field.kind:
        case "true or false":
            return {"true": True, "false": False}.get(text, text)
        case "whole number" | "number":
            return _number(text)
        case "list":
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return parts if field.key == "conditioning_data" else [_number(part) for part in parts]
        case _:
            return text


def _number(text: str) -> int | float | str:
    """The number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: object, key: str) -> str:
    """A value as its field shows it."""
    if value is None:
        return NULL if key == "caption_strategy" else ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(part, (list, dict)) for part in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)
