"""Reads the two files and the command line into RunConfig and DatasetEntry; all problems are told together.

Touches the disk only to read those files and to see which folder a relative path is in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longcat_tune.config.checking import Findings, drop_nulls, sort_keys, validate
from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.effects import warn_of_keys_without_effect, warn_of_run_keys_without_effect
from longcat_tune.config.foreign import CONFIG_KEYS, DATASET_KEYS, NESTED_KEYS
from longcat_tune.config.jsonc import read_jsonc
from longcat_tune.config.problems import COMMAND_LINE
from longcat_tune.config.run import RunConfig, keys, sections
from longcat_tune.config.schema import FromRun, section_of
from longcat_tune.errors import ConfigError

logger = logging.getLogger(__name__)

EXAMPLE_ENTRY = '{"id": "clips", "dataset_type": "video", "instance_data_dir": "clips"}'


def load_run_config(path: Path | None, overrides: Mapping[str, str]) -> RunConfig:
    """Read config.json and put the command line's values over it.

    Args:
        path: the file; None for the defaults alone.
        overrides: values of the command line by key, as text.

    Raises:
        ConfigError: with everything that is wrong in the file and on the command line.
    """
    findings = Findings()
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    file = str(path) if path is not None else COMMAND_LINE
    sources: list[tuple[str, Mapping[str, Any]]] = [(COMMAND_LINE, overrides)]
    if path is not None:
        sources.insert(0, (file, _read_object(path)))
    for source, raw in sources:
        own = sort_keys(raw, known=keys(), foreign=CONFIG_KEYS, where=source, findings=findings)
        values |= {key: None if value == "null" else value for key, value in own.items()}
        where |= dict.fromkeys(own, source)
    built = {}
    for name, model in sections().items():
        given = drop_nulls({key: values[key] for key in model.model_fields if key in values})
        built[name] = validate(model, given, where=where, default_where=file, findings=findings)
    findings.settle(file)
    config = RunConfig(**{name: section for name, section in built.items() if section is not None})
    warn_of_run_keys_without_effect(config, where=where)
    return config


def load_datasets(config: RunConfig, *, config_dir: Path) -> tuple[DatasetEntry, ...]:
    """Read the data file that the config names; disabled entries are left out.

    Args:
        config: gives the entries' defaults and the dataset used for evaluation.
        config_dir: folder of config.json, which relative paths may start from.

    Raises:
        ConfigError: with everything that is wrong in the file.
    """
    path = _data_file(config, config_dir)
    raw_entries = read_jsonc(path)
    if raw_entries == []:
        raise ConfigError(f"{path}: lists no datasets; add one, such as {EXAMPLE_ENTRY}")
    if not isinstance(raw_entries, list):
        raise ConfigError(f"{path}: must hold a list of datasets; put them between [ and ]")
    findings = Findings()
    entries = []
    for number, raw in enumerate(raw_entries, start=1):
        if not isinstance(raw, dict):
            findings.add(f"{path}: entry {number} must be an object; put its keys between {{ and }}")
        elif str(raw.get("disabled", raw.get("disable"))).lower() in {"true", "1"}:
            logger.info("%s: dataset %s is disabled", path, raw.get("id", number))
        else:
            entries.append(_entry(raw, number, config=config, path=path, findings=findings))
    complete = tuple(entry for entry in entries if entry is not None)
    if len(complete) == len(entries):
        _check_together(complete, config=config, path=path, findings=findings)
    findings.settle(str(path))
    return complete


def _read_object(path: Path) -> Mapping[str, Any]:
    raw = read_jsonc(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold one object; put the keys between {{ and }}")
    return raw


def _data_file(config: RunConfig, config_dir: Path) -> Path:
    given = config.data.data_backend_config
    if given is None:
        raise ConfigError(
            "data_backend_config (null) must name the file that lists the datasets; "
            'add "data_backend_config": "multidatabackend.json" to the config'
        )
    candidates = dict.fromkeys((config_dir / given, given))
    for path in candidates:
        if path.is_file():
            return path
    tried = " and ".join(str(path) for path in candidates)
    raise ConfigError(f"data_backend_config ({given}) is not there (tried {tried}); correct the path")


def _entry(
    raw: Mapping[str, Any], number: int, *, config: RunConfig, path: Path, findings: Findings
) -> DatasetEntry | None:
    """One entry with the run's defaults, its relative folder found; None when something is wrong with it."""
    where = f"{path}: {raw.get('id', f'entry {number}')}"
    values = sort_keys(
        raw, known=DatasetEntry.model_fields, foreign=DATASET_KEYS, where=where, findings=findings
    )
    for key in NESTED_KEYS:
        if isinstance(values.get(key), dict):
            values |= _sorted_object(key, values, where=where, findings=findings)
    captions = "caption_strategy" in values
    values = drop_nulls(values)
    without_captions = values.get("dataset_type") in {"conditioning", "text_embeds"}
    if without_captions or (captions and "caption_strategy" not in values):
        values["caption_strategy"] = None
    inherited = config.data.model_dump()
    for key, definition in DatasetEntry.model_fields.items():
        if any(isinstance(mark, FromRun) for mark in definition.metadata):
            values.setdefault(key, inherited[key])
    entry = validate(DatasetEntry, values, where={}, default_where=where, findings=findings)
    if entry is None:
        return None
    warn_of_keys_without_effect(entry, config, where=where)
    return _with_paths(entry, config=config, data_dir=path.parent)


def _sorted_object(key: str, values: Mapping[str, Any], *, where: str, findings: Findings) -> dict[str, Any]:
    """The object under a key of an entry, with our keys only; is_i2v moves up, it belongs to the entry."""
    section = section_of(DatasetEntry.model_fields[key])
    assert section is not None
    known = section.model_fields if key != "video" else {**section.model_fields, "is_i2v": None}
    inside = f"{where}: {key}"
    own = sort_keys(values[key], known=known, foreign=NESTED_KEYS[key], where=inside, findings=findings)
    own = drop_nulls(own)
    if "is_i2v" not in own:
        return {key: own}
    is_i2v = own.pop("is_i2v")
    if values.get("is_i2v", is_i2v) != is_i2v:
        findings.add(f"{where}: is_i2v differs between the entry and its video object; keep one")
    return {key: own, "is_i2v": is_i2v}


def _with_paths(entry: DatasetEntry, *, config: RunConfig, data_dir: Path) -> DatasetEntry:
    beside = data_dir / entry.instance_data_dir
    folder = beside if beside.is_dir() else entry.instance_data_dir
    update: dict[str, Any] = {"instance_data_dir": folder}
    if entry.cache_dir_vae is None:
        update["cache_dir_vae"] = config.output.output_dir / "cache" / "vae" / entry.id
    if (table := entry.caption_table) is not None:
        places = (folder / table.path, data_dir / table.path)
        path = next((place for place in places if place.is_file()), table.path)
        update["caption_table"] = table.model_copy(update={"path": path})
    return entry.model_copy(update=update)


def _check_together(
    entries: Sequence[DatasetEntry], *, config: RunConfig, path: Path, findings: Findings
) -> None:
    """What entries say of each other, and the config of them."""
    for identifier, count in Counter(entry.id for entry in entries).items():
        if count > 1:
            findings.add(f"{path}: id ({identifier}) is used by {count} entries; give each its own")
    types = {entry.id: entry.dataset_type for entry in entries}
    _check_partners(entries, types, path=path, findings=findings)
    if list(types.values()).count("text_embeds") > 1:
        findings.add(f"{path}: dataset_type (text_embeds) may be given once; remove the other entries")
    held_out = config.validation.eval_dataset_id
    if held_out is not None and held_out not in types:
        findings.add(_no_such_id("eval_dataset_id", held_out, list(types)))
    elif held_out is not None and types[held_out] in {"conditioning", "text_embeds"}:
        findings.add(
            f"eval_dataset_id ({held_out}) must name a dataset of clips, not of type {types[held_out]}; "
            "name the validation split"
        )


def _check_partners(
    entries: Sequence[DatasetEntry], types: Mapping[str, str], *, path: Path, findings: Findings
) -> None:
    """Every id in conditioning_data must be a conditioning entry, and every such entry should be used."""
    named = [(entry.id, partner) for entry in entries for partner in entry.conditioning_data]
    for identifier, partner in named:
        if partner not in types:
            findings.add(_no_such_id(f"{path}: {identifier}: conditioning_data", partner, list(types)))
        elif types[partner] != "conditioning":
            findings.add(
                f"{path}: {identifier}: conditioning_data ({partner}) must name an entry of dataset_type "
                f"conditioning, not {types[partner]}; set dataset_type there"
            )
    unused = [
        one
        for one, kind in types.items()
        if kind == "conditioning" and one not in {partner for _, partner in named}
    ]
    for identifier in unused:
        logger.warning("%s: %s has no effect; no conditioning_data names it", path, identifier)


def _no_such_id(subject: str, identifier: str, known: Sequence[str]) -> str:
    return f"{subject} ({identifier}) is the id of no enabled entry; the ids are {', '.join(known)}"
