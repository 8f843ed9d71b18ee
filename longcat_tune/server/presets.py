"""What a new run starts from: values for each flavour of the model, and for each size of card.

Data and two pure functions. Each preset was held against `longcat-tune check --device-memory 8GB
--host-memory 28GB` and so on, on clips of 93 frames at 832x512 (640x384 on 8 GB). Knows no
machine and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longcat_tune.config.miniature import MINIATURE

FLAVOUR = "model_flavour"
DEFAULT_FLAVOUR = "final"

STARTS: Mapping[str, Mapping[str, Any]] = {
    "final": {
        "max_train_steps": 1000,
        "checkpoint_step_interval": 250,
        "validation_step_interval": 250,
        "validation_resolution": "832x480",
    },
    "tiny": {
        "resolution": 64,
        "framerate": 15,
        **MINIATURE,
        "max_train_steps": 1100,
        "checkpoint_step_interval": 400,
        "validation_step_interval": 400,
        "validation_resolution": "64x64",
        "validation_num_video_frames": 9,
        "validation_num_inference_steps": 25,
    },
}
"""By flavour: a length that shows something, and sizes that the model was made for."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What makes the released model train on one size of card.

    Attributes:
        card_gb: memory of the card.
        host_gb: main memory that must be free besides.
        values: keys of a config.
    """

    card_gb: int
    host_gb: int
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As a form sends it."""
        return str(self.card_gb)

    @property
    def written(self) -> str:
        """What it writes, in a line."""
        return ", ".join(f"{key} {value}" for key, value in self.values.items())


_AUTO = {"memory_plan": "auto"}
_BASE_8_BIT = {"base_model_precision": "int8-quanto"}
# In bf16 it takes 11 GB, more than the card has; it is gone before training begins.
_ENCODER_8_BIT = {"text_encoder_1_precision": "int8-quanto"}

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        # At 480p a step needs 7.1 GiB wherever all else is put; at 384 it is 6.3, and the renders follow.
        Preset(
            8,
            28,
            {
                **_BASE_8_BIT,
                **_ENCODER_8_BIT,
                **_AUTO,
                "lora_rank": 4,
                "resolution": 384,
                "validation_resolution": "640x384",
            },
        ),
        Preset(12, 34, {**_BASE_8_BIT, **_ENCODER_8_BIT, **_AUTO}),
        Preset(16, 34, {**_BASE_8_BIT, **_AUTO}),
        Preset(24, 40, {**_AUTO, "lora_rank": 16}),
        Preset(48, 18, {**_AUTO, "lora_rank": 32}),
        Preset(80, 18, {**_AUTO, "lora_rank": 32}),
    )
}
"""By name; the base keeps its released precision wherever that fits."""

GOVERNED = frozenset(key for preset in PRESETS.values() for key in preset.values)
"""Keys that another preset takes back."""


def preset_for(card_mib: int | None) -> str:
    """The name of the preset for a card; empty where none is small enough, or there is no card.

    Args:
        card_mib: memory of the card; cards have some MiB less than their name says.
    """
    gigabytes = 0 if card_mib is None else round(card_mib / 1024)
    fitting = [name for name, preset in PRESETS.items() if preset.card_gb <= gigabytes]
    return fitting[-1] if fitting else ""


def with_preset(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config with a preset in the place of any other one.

    Args:
        values: of a config.
        name: of the preset; empty: none, as if no preset had been chosen.
    """
    start = STARTS.get(str(values.get(FLAVOUR, DEFAULT_FLAVOUR)), {})
    kept = {key: value for key, value in values.items() if key not in GOVERNED}
    back = {key: value for key, value in start.items() if key in GOVERNED}
    return {**kept, **back, **(PRESETS[name].values if name else {})}


def with_flavour(values: Mapping[str, Any], flavour: str) -> dict[str, Any]:
    """The config for another flavour: what was started from gives way, what was changed since stays.

    Args:
        values: of a config.
        flavour: one of STARTS.
    """
    before = STARTS.get(str(values.get(FLAVOUR, DEFAULT_FLAVOUR)), {})
    kept = {key: value for key, value in values.items() if before.get(key) != value}
    if flavour == "tiny":
        # A preset is for the released model's sizes; the miniature fits everywhere.
        kept = {key: value for key, value in kept.items() if key not in GOVERNED}
    kept.pop(FLAVOUR, None)
    return {FLAVOUR: flavour, **STARTS[flavour], **kept}


def fitting_presets(values: Mapping[str, Any]) -> list[str]:
    """The presets that a config looks as if it was made with, by name.

    Args:
        values: of a config.
    """
    return [name for name in PRESETS if _governed(with_preset(values, name)) == _governed(values)]


def _governed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in GOVERNED}
