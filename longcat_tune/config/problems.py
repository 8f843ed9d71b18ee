"""Turns what is wrong with values into sentences: where, key, value, rule, remedy.

Knows pydantic's errors and the marks of config.schema, but no particular key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from longcat_tune.config.schema import Instead, Section, section_of
from longcat_tune.errors import ConfigError

COMMAND_LINE = "command line"
_SHOWN = 80

_RULES = {
    "missing": "is missing",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path, as text",
    "tuple_type": "must be a list",
    "dict_type": "must be an object in braces",
    "model_type": "must be an object in braces",
    "too_short": "must not be empty",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


def shown(value: object) -> str:
    """A value as its file would hold it, shortened."""
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, Section):
        text = "{}"
    elif isinstance(value, tuple):
        text = ", ".join(str(item) for item in value) or "[]"
    elif value is None or value == "" or isinstance(value, (bool, int, list, dict)):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that looks most like this one."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def located(where: str, key: str, value: object) -> str:
    """`config.json: lora_rank (0)`, or with dashes for the command line."""
    name = f"--{key}" if where == COMMAND_LINE else key
    return f"{where}: {name} ({shown(value)})"


def raise_all(problems: Sequence[ConfigError]) -> None:
    """Raise one error that says everything that is wrong.

    Raises:
        ConfigError: if there is any problem.
    """
    if not problems:
        return
    messages = list(dict.fromkeys(str(problem) for problem in problems))
    text = messages[0] if len(messages) == 1 else "\n  ".join([f"{len(messages)} problems:", *messages])
    raise ConfigError(text)


def translate(
    error: ValidationError, model: type[Section], *, where: Mapping[str, str], default_where: str
) -> list[ConfigError]:
    """Say each of pydantic's errors in our words, one per key.

    Args:
        error: what pydantic raised.
        model: the section or entry that was validated.
        where: for each key, the file or command line it came from.
        default_where: where a rule between keys is broken.
    """
    problems: dict[str, ConfigError] = {}
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue
        key, field = _field(model, details["loc"])
        source = where.get(key.partition(".")[0], default_where)
        problems.setdefault(key, ConfigError(_sentence(details, key, field, source)))
    return list(problems.values())


def _field(model: type[Section], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The dotted key and definition that a location of pydantic points to."""
    if not location:
        return "", None
    name = str(location[0])
    field = model.model_fields.get(name)
    nested = section_of(field) if field is not None else None
    if len(location) > 1 and nested is not None:
        inner, inner_field = _field(nested, location[1:])
        return f"{name}.{inner}", inner_field
    if len(location) == 2 and field is not None and _is_mapping(field):
        return f"{name}.{location[1]}", field
    return name, field


def _is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(kind) is dict for kind in (field.annotation, *get_args(field.annotation)))


def _sentence(details: ErrorDetails, key: str, field: FieldInfo | None, where: str) -> str:
    context = details.get("ctx", {})
    if details["type"] == "value_error" and (field is None or section_of(field)):
        return f"{where}: {context['error']}"
    if details["type"] == "missing":
        return f"{where}: {key} is missing; add it"
    subject = located(where, key, details["input"])
    if field is None:
        return f"{subject} {details['msg']}"
    if details["type"] == "literal_error":
        return f"{subject} {_choice(details, field)}"
    rule = str(context["error"]) if details["type"] == "value_error" else _rule(details)
    return f"{subject} {rule}" if ";" in rule else f"{subject} {rule}; {_default_remedy(field)}"


def _rule(details: ErrorDetails) -> str:
    rule = _RULES.get(details["type"])
    message = details["msg"]
    return rule.format(**details.get("ctx", {})) if rule else f"{message[:1].lower()}{message[1:]}"


def _choice(details: ErrorDetails, field: FieldInfo) -> str:
    choices = choices_of(field)
    rule = f"must be one of {', '.join(choices)}" if len(choices) > 1 else f"must be {choices[0]}"
    value = str(details["input"])
    instead = next((mark for mark in field.metadata if isinstance(mark, Instead)), Instead())
    use = instead.nearest.get(value) or nearest(value, choices) or instead.otherwise
    if use is None:
        return f"{rule}; {_default_remedy(field)}"
    return f"{rule}; use {use}"


def choices_of(field: FieldInfo) -> list[str]:
    """The words a field may hold; empty when it is not a choice."""
    return [str(choice) for choice in _literals(field.annotation)]


def _literals(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for part in get_args(annotation):
        if part is None or isinstance(part, (str, int)):
            found.append(part)
        else:
            found.extend(_literals(part))
    return [choice for choice in found if isinstance(choice, (str, int))]


def _default_remedy(field: FieldInfo) -> str:
    if field.default in (None, PydanticUndefined):
        return "correct it or remove it"
    return f"remove it for the default, {shown(field.default)}"
