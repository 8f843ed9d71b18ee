"""RunConfig: the eight sections together, and the flat view that files, options and docs share."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple, cast

from pydantic import Field
from pydantic.fields import FieldInfo

from longcat_tune.config.data import DataSection
from longcat_tune.config.flow import FlowSection
from longcat_tune.config.lora import LoraSection
from longcat_tune.config.memory import MemorySection
from longcat_tune.config.model import ModelSection
from longcat_tune.config.output import OutputSection
from longcat_tune.config.schema import MayChange, Section
from longcat_tune.config.training import TrainingSection
from longcat_tune.config.validation import ValidationSection
from longcat_tune.errors import ConfigError

logger = logging.getLogger(__name__)

AROUND_THE_LEARNING = ("memory", "validation", "output")
"""Sections of which a resumed run may have other values and still be the same run."""


class RunConfig(Section):
    """What was asked of a run; each key of config.json is a field of exactly one section."""

    model: ModelSection = Field(default_factory=ModelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection = Field(default_factory=DataSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    flow: FlowSection = Field(default_factory=FlowSection)
    memory: MemorySection = Field(default_factory=MemorySection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    output: OutputSection = Field(default_factory=OutputSection)

    def flat(self) -> dict[str, Any]:
        """Every key with its value, as config.json would hold it."""
        return {
            key: value for section in self.model_dump(mode="json").values() for key, value in section.items()
        }


class Key(NamedTuple):
    """One key of config.json: the section it belongs to, and its definition."""

    section: str
    field: FieldInfo


@cache
def keys() -> dict[str, Key]:
    """All keys of config.json, in the order of the sections."""
    return {
        key: Key(section, field)
        for section, model in sections().items()
        for key, field in model.model_fields.items()
    }


def changes_meaning(key: str, then: object, now: object) -> bool:
    """Whether what is learned changes when a resumed run has another value of a key.

    Args:
        key: any; what is no key of config.json changes nothing.
        then: the value that the run was begun with.
        now: the other one.
    """
    if key not in keys():
        return False
    section, field = keys()[key]
    if section in AROUND_THE_LEARNING:
        return False
    marks = [mark for mark in field.metadata if isinstance(mark, MayChange)]
    return all({str(then), str(now)} & mark.except_values for mark in marks)


@cache
def sections() -> dict[str, type[Section]]:
    """The sections of RunConfig by name."""
    return {name: cast(type[Section], field.annotation) for name, field in RunConfig.model_fields.items()}


def require_training_length(config: RunConfig) -> None:
    """Stop a training run that was not told how long to train.

    Raises:
        ConfigError: when neither steps nor epochs are given.
    """
    steps, epochs = config.training.max_train_steps, config.training.num_train_epochs
    if steps is None and epochs is None:
        raise ConfigError(
            "max_train_steps and num_train_epochs (both null): one must be given to train; "
            'add "max_train_steps": 1000 to the config'
        )
    if steps is not None and epochs is not None:
        logger.info("max_train_steps (%d) wins over num_train_epochs (%d)", steps, epochs)
