"""Says what a field accepts, for `--help` and for docs/config.md; knows no particular key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longcat_tune.config.problems import choices_of, shown
from longcat_tune.config.schema import FromRun, section_of

_KINDS = ((bool, "true or false"), (int, "whole number"), (float, "number"), (Path, "path"), (str, "text"))


def kind(field: FieldInfo) -> str:
    """What a value is: `whole number`, `list`, `choice` and so on."""
    types = {field.annotation, *get_args(field.annotation)}
    if any(one is tuple or get_origin(one) is tuple for one in types):
        return "list"
    if any(get_origin(one) is dict for one in types):
        return "object"
    if choices_of(field):
        return "choice"
    return next((name for known, name in _KINDS if known in types), "object")


def accepts(field: FieldInfo) -> str:
    """Choices, or what a value is and between which bounds; of an object, its keys."""
    what = kind(field)
    section = section_of(field)
    choices = ", ".join(section.model_fields if section is not None else choices_of(field))
    if what == "choice":
        return choices
    if what == "list" and choices:
        return f"{choices}, or a list"
    if what == "object" and choices:
        return f"object with {choices}"
    return ", ".join([what, *(bound for mark in field.metadata for bound in _bound(mark))])


def _bound(mark: object) -> list[str]:
    match mark:
        case Ge(ge=limit):
            return [f">= {limit}"]
        case Gt(gt=limit):
            return [f"> {limit}"]
        case Le(le=limit):
            return [f"<= {limit}"]
        case Lt(lt=limit):
            return [f"< {limit}"]
        case _:
            return []


def default(field: FieldInfo) -> str:
    """The default as a config file would hold it."""
    if any(isinstance(mark, FromRun) for mark in field.metadata):
        return "the run's"
    if field.is_required():
        return "required"
    return "null" if field.default is PydanticUndefined else shown(field.default)
