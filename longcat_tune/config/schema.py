"""What every section is made of: a frozen strict model, and the marks a field can carry.

Knows nothing of files or of particular keys; config.load, the command line and the docs read the marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no infinities; built on first use: help is quick."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def section_of(definition: FieldInfo) -> type[Section] | None:
    """The section that a key holds, which may also be null; None for a plain value."""
    kinds = (definition.annotation, *get_args(definition.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


@dataclass(frozen=True, slots=True)
class Instead:
    """Marks a field with values of SimpleTuner that will never be known here.

    Attributes:
        nearest: for such a value, the one to use.
        otherwise: the one to use for all that are not listed.
    """

    nearest: Mapping[str, str] = field(default_factory=dict)
    otherwise: str | None = None


@dataclass(frozen=True, slots=True)
class MayChange:
    """Marks a field that a resumed run may have another value of and still be the same run.

    Attributes:
        except_values: those that nothing else learns the same as: a change from or to one counts.
    """

    except_values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FromRun:
    """Marks a dataset field that takes the run's value of the same name when the entry does not set it."""
