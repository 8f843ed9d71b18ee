"""Steps that both files go through: bring keys to our spelling, build a section, collect what is wrong.

Knows neither file; config.load drives it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from longcat_tune.config.foreign import ForeignKeys
from longcat_tune.config.problems import located, nearest, raise_all, translate
from longcat_tune.config.schema import Section, section_of
from longcat_tune.errors import ConfigError

logger = logging.getLogger(__name__)

SectionT = TypeVar("SectionT", bound=Section)


@dataclass
class Findings:
    """What is wrong with the files so far, and what had no effect."""

    problems: list[ConfigError] = field(default_factory=list)
    without_effect: dict[str, None] = field(default_factory=dict)

    def add(self, message: str) -> None:
        """Note a problem."""
        self.problems.append(ConfigError(message))

    def settle(self, where: str) -> None:
        """Warn of keys without effect, once; then raise what is wrong.

        Raises:
            ConfigError: all problems in one message.
        """
        if self.without_effect:
            logger.warning(
                "%s: SimpleTuner keys that have no meaning here had no effect: %s",
                where,
                ", ".join(sorted(self.without_effect)),
            )
        raise_all(self.problems)


def sort_keys(
    raw: Mapping[str, Any], *, known: Mapping[str, Any], foreign: ForeignKeys, where: str, findings: Findings
) -> dict[str, Any]:
    """Bring keys to our spelling and keep those that are ours; note the others.

    Args:
        raw: keys as written, dashes and all.
        known: our keys.
        foreign: other spellings, and keys of SimpleTuner.
        where: names the source in messages.
        findings: takes unknown keys, and foreign ones with and without effect.
    """
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    for name, value in raw.items():
        spelled = name.removeprefix("--").replace("-", "_")
        key = foreign.aliases.get(spelled, spelled)
        if key in known and key in values:
            findings.add(f"{where}: {key} is given twice, as {written[key]} and as {name}; keep one")
        elif key in known:
            values[key], written[key] = value, name
        elif key in foreign.consequences and foreign.consequences[key].matters(value):
            findings.add(
                f"{located(where, key, value)} does not exist here; {foreign.consequences[key].instead}"
            )
        elif key in foreign.names():
            findings.without_effect[key] = None
        else:
            close = nearest(key, [*known, *foreign.aliases])
            remedy = f"did you mean {close}?" if close else "docs/config.md lists all keys"
            findings.add(f"{located(where, key, value)} is not a known key; {remedy}")
    return values


def validate(
    model: type[SectionT],
    given: Mapping[str, Any],
    *,
    where: Mapping[str, str],
    default_where: str,
    findings: Findings,
) -> SectionT | None:
    """Build a section from given values; None when something is wrong with them.

    Args:
        model: the section.
        given: values by key, without nulls that mean the default.
        where: for each key, the file or command line it came from.
        default_where: for rules between keys.
        findings: takes what is wrong.
    """
    sound = dict(given)
    for key, value in _numbers_as_bool(model, given):
        top = key.partition(".")[0]
        findings.add(f"{located(where.get(top, default_where), key, value)} must be a number; correct it")
        sound.pop(top, None)
    try:
        return model.model_validate(sound)
    except ValidationError as error:
        findings.problems += translate(error, model, where=where, default_where=default_where)
        return None


def _numbers_as_bool(model: type[Section], given: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Dotted keys of numbers that are given as true or false, which pydantic would take for 1 and 0."""
    for key, value in given.items():
        field = model.model_fields[key]
        nested = section_of(field)
        if nested is not None and isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in _numbers_as_bool(nested, value))
        elif isinstance(value, bool) and _is_number(field):
            yield key, value


def _is_number(field: FieldInfo) -> bool:
    return not {int, float}.isdisjoint({field.annotation, *get_args(field.annotation)})


def drop_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out null and the empty text, which both mean the default."""
    return {key: value for key, value in values.items() if value is not None and value != ""}
