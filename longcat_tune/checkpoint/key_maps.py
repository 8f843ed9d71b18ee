"""What LoRA weights are called in each file format; strings only.

Our own name of a weight is PEFT's without prefix and adapter name: `blocks.0.attn.qkv.lora_A.weight`.
Sources: meituan-longcat/LongCat-Video, longcat_video/modules/lora_utils.py; huggingface/peft,
src/peft/utils/save_and_load.py; kijai/ComfyUI-WanVideoWrapper, wanvideo/modules/model.py and
nodes_model_loading.py; modelscope/DiffSynth-Studio, diffsynth/utils/lora/general.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

PEFT_PREFIX = "transformer."
COMFYUI_PREFIX = "diffusion_model."
KNOWN_PREFIXES = (PEFT_PREFIX, COMFYUI_PREFIX, "base_model.model.", "pipe.dit.")
"""Put before module names by diffusers (and us), ComfyUI, PEFT and DiffSynth; some files have none."""

OFFICIAL_DOT = "___lorahyphen___"
OFFICIAL_START = f"lora{OFFICIAL_DOT}"

EXPECTED = (
    "transformer.blocks.0.attn.qkv.lora_A.weight (PEFT; the prefix may also be diffusion_model., "
    "base_model.model., pipe.dit. or none, and lora_down stand for lora_A), "
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight (ComfyUI), "
    f"{OFFICIAL_START}blocks{OFFICIAL_DOT}0{OFFICIAL_DOT}attn{OFFICIAL_DOT}qkv.lora_down.weight (Meituan's) "
    "or lora_unet_blocks_0_attn_qkv.lora_down.weight (musubi-tuner)"
)
"""For the message about a file of another kind."""

FUSED = (
    (re.compile(r"blocks\.\d+\.attn\.qkv"), 3),
    (re.compile(r"blocks\.\d+\.cross_attn\.kv_linear"), 2),
    (re.compile(r"blocks\.\d+\.adaLN_modulation\.1"), 6),
    (re.compile(r"final_layer\.adaLN_modulation\.1"), 2),
)
"""Layers whose output is several things side by side; Meituan trains those with one LoRA for each."""

_IN_BLOCKS = {
    "attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn.proj": ("self_attn.o",),
    "cross_attn.q_linear": ("cross_attn.q",),
    "cross_attn.kv_linear": ("cross_attn.k", "cross_attn.v"),
    "cross_attn.proj": ("cross_attn.o",),
    "ffn.w1": ("ffn.w1",),
    "ffn.w2": ("ffn.w2",),
    "ffn.w3": ("ffn.w3",),
    "adaLN_modulation.1": ("modulation.1",),
}
_OUTSIDE = {
    "final_layer.linear": ("head.head",),
    "final_layer.adaLN_modulation.1": ("head.modulation.1",),
    "y_embedder.y_proj.0": ("text_embedding.0",),
    "y_embedder.y_proj.2": ("text_embedding.2",),
    "t_embedder.mlp.0": ("time_embedding.mlp.0",),
    "t_embedder.mlp.2": ("time_embedding.mlp.2",),
}
"""The model's layers, and the layers of the ComfyUI wrapper that hold equal shares of their rows."""

_BLOCK = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<rest>.+)")
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?:(?P<matrix>lora_(?:A|B|down|up))(?:\.[^.]+)?\.weight"
    r"|(?P<alpha>alpha)|(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+){0,2})"
)
_OFFICIAL_KEY = re.compile(
    r"(?P<module>[^.]+)\.(?P<part>alpha_scale|lora_down\.weight|lora_up\.weight|lora_up\.blocks\.\d+\.weight)"
)
_KOHYA_START = re.compile(r"lora_unet_{1,2}(?:blocks_(?P<block>\d+)_)?")
_MATRICES = {"lora_down": "lora_A", "lora_up": "lora_B"}


class PartName(NamedTuple):
    """One tensor's module, with dots, and its role there as the format calls it."""

    module: str
    part: str


class Share(NamedTuple):
    """Which rows of a layer a LoRA adapts: the share with this number, of so many equal ones."""

    module: str
    number: int
    of: int


def is_official(key: str) -> bool:
    """Whether a key is of Meituan's format."""
    return key.startswith(OFFICIAL_START)


def is_kohya(key: str) -> bool:
    """Whether a key is of the format of musubi-tuner and sd-scripts, which has no dots in module names."""
    return _KOHYA_START.match(key) is not None


def lora_name(key: str) -> PartName | None:
    """Split a key of PEFT's, ComfyUI's, DiffSynth's or musubi-tuner's.

    Returns:
        The module without prefix, and lora_A, lora_B, lora_magnitude_vector or alpha; None for a key of
        another kind.
    """
    while prefix := next((prefix for prefix in KNOWN_PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    match = _LORA_KEY.fullmatch(key)
    if match is None:
        return None
    part = match["matrix"] or match["alpha"] or match["magnitude"]
    return PartName(_with_dots(match["module"]), _MATRICES.get(part, part))


def official_name(key: str) -> PartName | None:
    """Split an official key; the part is what follows the module. None: another kind of key."""
    match = _OFFICIAL_KEY.fullmatch(key.removeprefix(OFFICIAL_START))
    return PartName(match["module"].replace(OFFICIAL_DOT, "."), match["part"]) if match else None


def official_base(module: str) -> str:
    """What Meituan's keys of a module begin with."""
    return OFFICIAL_START + module.replace(".", OFFICIAL_DOT)


def fused_parts(module: str) -> int:
    """How many things a layer computes side by side: 3 for qkv, 1 for most."""
    return next((count for pattern, count in FUSED if pattern.fullmatch(module)), 1)


def comfyui_names(module: str) -> tuple[str, ...] | None:
    """The wrapper's layers that hold a layer's rows, in order; None: it has none for it."""
    block, rest = _in_block(module)
    names = (_IN_BLOCKS if block else _OUTSIDE).get(rest)
    return tuple(block + name for name in names) if names else None


def share_of(module: str) -> Share:
    """Which rows of which of the model's layers a name means, if it is a wrapper's; else all of its own."""
    block, rest = _in_block(module)
    own, number, of = (_SHARES_IN_BLOCKS if block else _SHARES_OUTSIDE).get(rest, (rest, 0, 1))
    return Share(block + own, number, of)


def is_comfyui(module: str) -> bool:
    """Whether a layer's name is the wrapper's and not the model's too."""
    return share_of(module).module != module


def _in_block(module: str) -> tuple[str, str]:
    match = _BLOCK.fullmatch(module)
    assert match is not None
    return match["block"] or "", match["rest"]


def _shares(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int, int]]:
    return {
        name: (module, number, len(names))
        for module, names in table.items()
        for number, name in enumerate(names)
    }


_SHARES_IN_BLOCKS, _SHARES_OUTSIDE = _shares(_IN_BLOCKS), _shares(_OUTSIDE)


def _without_dots(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    names = [name for module, wrapped in table.items() for name in (module, *wrapped)]
    return {name.replace(".", "_"): name for name in names}


_DOTTED_IN_BLOCKS, _DOTTED_OUTSIDE = _without_dots(_IN_BLOCKS), _without_dots(_OUTSIDE)


def _with_dots(module: str) -> str:
    """A name of musubi-tuner with the dots it lost; other names, and unknown layers, as they are."""
    start = _KOHYA_START.match(module)
    if start is None:
        return module
    rest = module[start.end() :]
    if start["block"] is None:
        return _DOTTED_OUTSIDE.get(rest, module)
    return f"blocks.{start['block']}.{_DOTTED_IN_BLOCKS.get(rest, rest)}"
