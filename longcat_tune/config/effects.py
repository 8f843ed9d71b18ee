"""Keys that nothing reads because of what the entry is or another key says: told, never ignored in silence.

Compares values with their defaults; a key that is written out at its default changes nothing and is no news,
except where another key takes the place of that default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from longcat_tune.config.datasets import DatasetEntry, DatasetType
from longcat_tune.config.problems import shown
from longcat_tune.config.run import RunConfig, keys

logger = logging.getLogger(__name__)

WHERE_AND_WHAT = frozenset(
    {"id", "type", "dataset_type", "disabled", "instance_data_dir", "cache_dir_vae", "caption_strategy"}
)
"""Keys that every entry may have; the loader sees to it that only clips have captions."""
ONLY_READ: Mapping[DatasetType, frozenset[str]] = {
    "conditioning": WHERE_AND_WHAT,
    "text_embeds": WHERE_AND_WHAT | {"cache_dir"},
}
"""The kinds of entries that read few keys: start images are brought to the size of their clips."""
ONLY_IN_TRAINING = ("repeats", "probability", "start_step", "end_step", "is_regularisation_data")
ONLY_ONE_STRATEGY = {"instance_prompt": "instanceprompt", "disable_multiline_split": "textfile"}
"""Keys that only one caption_strategy reads."""


def warn_of_run_keys_without_effect(config: RunConfig, *, where: Mapping[str, str]) -> None:
    """Tell of keys of config.json that change nothing, and why; one may be switched off for a single run.

    Args:
        config: the run.
        where: for each key that is set, the file or command line it came from.
    """
    for key, reason in _run_keys_without_effect(config):
        value = shown(config.flat()[key])
        logger.warning("%s: %s (%s) has no effect %s; remove it", where[key], key, value, reason)


def _run_keys_without_effect(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys that are set and not read, and why not."""
    validation, output, flat = config.validation, config.output, config.flat()
    if validation.validation_lora is not None:
        for key in ("validation_num_inference_steps", "validation_guidance"):
            if key in validation.model_fields_set:
                yield key, "with validation_lora, whose renders have steps and guidance of their own"
    unread: dict[str, str] = {}
    if not validation.validation_preview:
        unread["validation_preview_steps"] = "while validation_preview is false"
    if not output.push_to_hub:
        unread["hub_model_id"] = "while push_to_hub is false"
    if output.report_to != "wandb":
        for key in ("tracker_project_name", "tracker_run_name"):
            unread[key] = f"with report_to {output.report_to}"
    yield from ((key, reason) for key, reason in unread.items() if flat[key] != keys()[key].field.default)


def warn_of_keys_without_effect(entry: DatasetEntry, config: RunConfig, *, where: str) -> None:
    """Tell of an entry's keys that change nothing, and why.

    Args:
        entry: with the run's defaults.
        config: the run; its eval_dataset_id may hold the entry out.
        where: names the entry in messages.
    """
    inherited = config.data.model_dump()
    changed = [
        key
        for key, field in DatasetEntry.model_fields.items()
        if entry.__dict__[key] != inherited.get(key, field.default)
    ]
    for unread, reason in _without_effect(entry, config, changed):
        if unread:
            these = "it" if len(unread) == 1 else "them"
            has = "has" if len(unread) == 1 else "have"
            logger.warning("%s: %s %s no effect %s; remove %s", where, ", ".join(unread), has, reason, these)


def _without_effect(
    entry: DatasetEntry, config: RunConfig, changed: list[str]
) -> Iterator[tuple[list[str], str]]:
    """Keys that are not read, and why not."""
    kind = entry.dataset_type
    if kind in ONLY_READ:
        yield [key for key in changed if key not in ONLY_READ[kind]], f"with dataset_type {kind}"
        return
    if "cache_dir" in changed:
        yield ["cache_dir"], f"with dataset_type {kind}, whose folder is cache_dir_vae"
    for key, strategy in ONLY_ONE_STRATEGY.items():
        if key in changed and entry.caption_strategy != strategy:
            yield [key], f"with caption_strategy {entry.caption_strategy or 'null'}"
    untrained = [key for key in changed if key in ONLY_IN_TRAINING]
    if kind == "eval":
        yield untrained, "with dataset_type eval, which is not trained on"
    elif entry.id == config.validation.eval_dataset_id:
        yield untrained, "on the dataset of eval_dataset_id, which is not trained on"
