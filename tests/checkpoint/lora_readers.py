"""How other programs read LoRA files, written from their rules and not with the package's own readers.

Every reader takes the tensors of a file and gives the dense update of each of the model's layers; a key that
the program would not understand, or a shape it would refuse, fails.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

HIDDEN, FFN, TIME, PATCH = 8, 12, 6, 4
LAYERS = {
    "attn.qkv": (HIDDEN, 3 * HIDDEN),
    "attn.proj": (HIDDEN, HIDDEN),
    "cross_attn.q_linear": (HIDDEN, HIDDEN),
    "cross_attn.kv_linear": (HIDDEN, 2 * HIDDEN),
    "cross_attn.proj": (HIDDEN, HIDDEN),
    "ffn.w1": (HIDDEN, FFN),
    "ffn.w2": (FFN, HIDDEN),
    "ffn.w3": (HIDDEN, FFN),
    "adaLN_modulation.1": (TIME, 6 * HIDDEN),
}
SIZES = {f"blocks.{block}.{name}": size for block in range(2) for name, size in LAYERS.items()} | {
    "final_layer.linear": (HIDDEN, PATCH),
    "final_layer.adaLN_modulation.1": (TIME, 2 * HIDDEN),
}
"""Inputs and outputs of every layer of a very small model, by the official names."""

APART = {"attn.qkv": 3, "cross_attn.kv_linear": 2, "adaLN_modulation.1": 6}
CFG_STEP = (
    "attn.qkv",
    "attn.proj",
    "cross_attn.q_linear",
    "cross_attn.kv_linear",
    "ffn.w1",
    "ffn.w2",
    "ffn.w3",
)
"""What Meituan's cfg_step_lora adapts in every block; refinement_lora adds modulation and final layer."""

# Layers of the ComfyUI wrapper's model, as its model.py names them, with the rows of ours that they hold.
WRAPPED = {
    f"blocks.{block}.{name}": (f"blocks.{block}.{own}", rows)
    for block in range(2)
    for name, own, rows in (
        ("self_attn.q", "attn.qkv", (0, HIDDEN)),
        ("self_attn.k", "attn.qkv", (HIDDEN, 2 * HIDDEN)),
        ("self_attn.v", "attn.qkv", (2 * HIDDEN, 3 * HIDDEN)),
        ("self_attn.o", "attn.proj", (0, HIDDEN)),
        ("cross_attn.q", "cross_attn.q_linear", (0, HIDDEN)),
        ("cross_attn.k", "cross_attn.kv_linear", (0, HIDDEN)),
        ("cross_attn.v", "cross_attn.kv_linear", (HIDDEN, 2 * HIDDEN)),
        ("cross_attn.o", "cross_attn.proj", (0, HIDDEN)),
        ("ffn.w1", "ffn.w1", (0, FFN)),
        ("ffn.w2", "ffn.w2", (0, HIDDEN)),
        ("ffn.w3", "ffn.w3", (0, FFN)),
        ("modulation.1", "adaLN_modulation.1", (0, 6 * HIDDEN)),
    )
} | {
    "head.head": ("final_layer.linear", (0, PATCH)),
    "head.modulation.1": ("final_layer.adaLN_modulation.1", (0, 2 * HIDDEN)),
}


def official(tensors: dict[str, Tensor], network_dim: int) -> dict[str, Tensor]:
    """Meituan's load_lora: layers are made from the names and one rank, then loaded strictly."""
    hyphen = "___lorahyphen___"
    left = dict(tensors)
    deltas = {}
    names = [key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")]
    for base in names:
        module = base.replace(f"lora{hyphen}", "", 1).replace(hyphen, ".")
        inputs, outputs = SIZES[module]
        parts = sum(key.startswith(f"{base}.lora_up.blocks") for key in tensors) or 1
        down, scale = left.pop(f"{base}.lora_down.weight"), left.pop(f"{base}.alpha_scale")
        one = parts == 1
        up_names = ["lora_up.weight"] if one else [f"lora_up.blocks.{j}.weight" for j in range(parts)]
        ups = [left.pop(f"{base}.{name}") for name in up_names]
        assert scale.shape == ()
        assert down.shape == (parts * network_dim, inputs), module
        assert all(up.shape == (outputs // parts, network_dim) for up in ups), module
        chunks = down.double().split(network_dim)
        rows = [up.double() @ chunk for up, chunk in zip(ups, chunks, strict=True)]
        deltas[module] = scale.double() * torch.cat(rows)
    assert not left, f"strict loading fails: {list(left)}"
    return deltas


def comfyui(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI with the wrapper's model: weight + alpha / rank * lora_B @ lora_A for names it has."""
    left = dict(tensors)
    deltas: dict[str, Tensor] = {}
    for name, (own, rows) in WRAPPED.items():
        key = f"diffusion_model.{name}"
        if f"{key}.lora_B.weight" not in left:
            continue
        up, down = left.pop(f"{key}.lora_B.weight"), left.pop(f"{key}.lora_A.weight")
        alpha = left.pop(f"{key}.alpha").item()
        inputs, outputs = SIZES[own]
        whole = deltas.setdefault(own, torch.zeros(outputs, inputs, dtype=torch.float64))
        whole[slice(*rows)] = alpha / down.shape[0] * (up.double() @ down.double())
    assert not left, f"lora key not loaded: {list(left)}"
    return deltas


def diffsynth(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DiffSynth-Studio: bare or diffusion_model. names of the official model; no other prefix matches."""
    deltas = {}
    for key, up in tensors.items():
        if ".lora_B." not in key:
            continue
        module = key.split(".lora_B.")[0].removeprefix("diffusion_model.")
        assert module in SIZES, f"{key} is left out without a word"
        deltas[module] = up.double() @ tensors[key.replace("lora_B", "lora_A")].double()
    return deltas


def meituan_file(kind: str, *, rank: int = 128) -> dict[str, Tensor]:
    """Tensors laid out like a released file: cfg_step or refinement, alpha_scale 0.5, q, k and v apart."""
    generator = Generator().manual_seed(7)
    modules = [f"blocks.{block}.{name}" for block in range(2) for name in CFG_STEP]
    if kind == "refinement":
        modules += [f"blocks.{block}.adaLN_modulation.1" for block in range(2)]
        modules += ["final_layer.adaLN_modulation.1", "final_layer.linear"]
    tensors = {}
    for module in modules:
        inputs, outputs = SIZES[module]
        parts = 2 if module == "final_layer.adaLN_modulation.1" else APART.get(module.split(".", 2)[-1], 1)
        base = "lora___lorahyphen___" + module.replace(".", "___lorahyphen___")
        tensors[f"{base}.alpha_scale"] = torch.tensor(0.5)
        tensors[f"{base}.lora_down.weight"] = torch.randn(parts * rank, inputs, generator=generator)
        for part in range(parts):
            name = "lora_up.weight" if parts == 1 else f"lora_up.blocks.{part}.weight"
            tensors[f"{base}.{name}"] = torch.randn(outputs // parts, rank, generator=generator)
    return tensors
