"""Keys of an entry that nothing reads because of what the entry is: told, never ignored in silence.

Compares values with their defaults; a key that is written out at its default changes nothing and is no news.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from longcat_tune.config.datasets import DatasetEntry, DatasetType
from longcat_tune.config.run import RunConfig

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
ONLY_IN_TRAINING = ("repeats", "probability", "start_step", "end_step")
ONLY_ONE_STRATEGY = {"instance_prompt": "instanceprompt", "disable_multiline_split": "textfile"}
"""Keys that only one caption_strategy reads."""


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
    for keys, reason in _without_effect(entry, config, changed):
        if keys:
            these = "it" if len(keys) == 1 else "them"
            has = "has" if len(keys) == 1 else "have"
            logger.warning("%s: %s %s no effect %s; remove %s", where, ", ".join(keys), has, reason, these)


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
