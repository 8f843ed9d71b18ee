"""Short ways to load configs in tests and to read the whole message of what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError


def config_of(folder: Path, text: str | dict = "{}", **overrides: str) -> RunConfig:
    """Load a config.json with this text or these values."""
    path = folder / "config.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return load_run_config(path, overrides)


def config_message(folder: Path, text: str | dict = "{}", **overrides: str) -> str:
    """The message that loading ends with; the test's folder is written `DIR`."""
    with pytest.raises(ConfigError) as caught:
        config_of(folder, text, **overrides)
    return str(caught.value).replace(str(folder), "DIR")


def datasets_of(folder: Path, text: str | list, **overrides: str) -> tuple[DatasetEntry, ...]:
    """Load a data.json with this text or these entries."""
    (folder / "data.json").write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    config = load_run_config(None, {"data_backend_config": "data.json", **overrides})
    return load_datasets(config, config_dir=folder)


def datasets_message(folder: Path, text: str | list, **overrides: str) -> str:
    """The message that loading ends with; the test's folder is written `DIR`."""
    with pytest.raises(ConfigError) as caught:
        datasets_of(folder, text, **overrides)
    return str(caught.value).replace(str(folder), "DIR")


def clips(**changes: object) -> dict:
    """An entry that is right, with changes."""
    return {"id": "clips", "instance_data_dir": "/data/clips", **changes}
