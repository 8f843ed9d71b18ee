"""What LoRA weights are called in each file format; strings only.

Our own name of a weight is PEFT's without prefix and adapter name: `blocks.0.attn.qkv.lora_A.weight`.
Sources: meituan-longcat/LongCat-Video, longcat_video/modules/lora_utils.py; huggingface/peft,
src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WRITTEN_PREFIX = "transformer."
KNOWN_PREFIXES = (WRITTEN_PREFIX, "diffusion_model.", "base_model.model.")
"""Put before module names by diffusers (and us), ComfyUI and PEFT; some files have none."""

OFFICIAL_DOT = "___lorahyphen___"
OFFICIAL_START = f"lora{OFFICIAL_DOT}"

EXPECTED = (
    "transformer.blocks.0.attn.qkv.lora_A.weight (PEFT; the prefix may also be diffusion_model., "
    "base_model.model. or none) or "
    f"{OFFICIAL_START}blocks{OFFICIAL_DOT}0{OFFICIAL_DOT}attn{OFFICIAL_DOT}qkv.lora_down.weight (Meituan's)"
)
"""For the message about a file of another kind."""

PEFT_KEY = re.compile(r"(?P<module>.+)\.(?:(?P<part>lora_[AB])(?:\.[^.]+)?\.weight|(?P<alpha>alpha))")
OFFICIAL_KEY = re.compile(
    r"(?P<module>[^.]+)\.(?P<part>alpha_scale|lora_down\.weight|lora_up\.weight|lora_up\.blocks\.\d+\.weight)"
)


class PartName(NamedTuple):
    """One tensor's module, with dots, and its role there as the format calls it."""

    module: str
    part: str


def written_key(key: str) -> str:
    """Our own name as it is written to a file."""
    return WRITTEN_PREFIX + key


def is_official(key: str) -> bool:
    """Whether a key is of Meituan's format."""
    return key.startswith(OFFICIAL_START)


def peft_name(key: str) -> PartName | None:
    """Split a PEFT key of any prefix; the part is lora_A, lora_B or alpha. None: another kind of key."""
    while prefix := next((prefix for prefix in KNOWN_PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    match = PEFT_KEY.fullmatch(key)
    return PartName(match["module"], match["part"] or match["alpha"]) if match else None


def official_name(key: str) -> PartName | None:
    """Split an official key; the part is what follows the module. None: another kind of key."""
    match = OFFICIAL_KEY.fullmatch(key.removeprefix(OFFICIAL_START))
    return PartName(match["module"].replace(OFFICIAL_DOT, "."), match["part"]) if match else None
