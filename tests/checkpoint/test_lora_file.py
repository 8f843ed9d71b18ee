"""LoRA files survive a round trip, are read in every known spelling, and are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from longcat_tune.checkpoint.key_maps import lora_name
from longcat_tune.checkpoint.lora_file import LORA_FILES, LoraWeights, read_lora, write_lora
from longcat_tune.checkpoint.lora_reader import open_lora
from longcat_tune.errors import CheckpointError, UserError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora_targets import linear_layers

NAMES = ("blocks.0.attn.qkv", "final_layer.adaLN_modulation.1")


def matrices(rank: int = 2) -> dict[str, Tensor]:
    generator = Generator().manual_seed(0)
    return {
        f"{name}.lora_{part}.weight": torch.randn(shape, generator=generator)
        for name in NAMES
        for part, shape in (("A", (rank, 6)), ("B", (12, rank)))
    }


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("alphas", [dict.fromkeys(NAMES, 4.0), dict(zip(NAMES, (4.0, 0.5), strict=True))])
def test_what_is_written_is_read_back(tmp_path: Path, alphas: dict[str, float]) -> None:
    path = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    info = {"targets": "attention", "base_model": "tiny", "step": "7"}
    write_lora(path, LoraWeights(matrices(), alphas, info))
    for source in (path, path.parent):
        back = read_lora(source)
        assert same(back.weights, matrices())
        assert back.alphas == alphas
        assert back.ranks == dict.fromkeys(NAMES, 2)
        assert info.items() <= back.metadata.items()
    with safe_open(path, framework="pt") as file:
        assert "transformer.blocks.0.attn.qkv.lora_A.weight" in file.keys()  # noqa: SIM118
        assert file.metadata()["rank"] == "2"
        assert file.metadata()["format"] == "pt"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        "pipe.dit.",
        "diffusion_model.transformer.",
    ],
)
@pytest.mark.parametrize("adapter", ["", ".default"])
@pytest.mark.parametrize("parts", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_every_spelling_of_peft_is_read(
    tmp_path: Path, prefix: str, adapter: str, parts: tuple[str, str]
) -> None:
    renamed = {
        prefix
        + key.replace(".weight", f"{adapter}.weight")
        .replace("lora_A", parts[0])
        .replace("lora_B", parts[1]): tensor
        for key, tensor in matrices().items()
    }
    lora = read_lora(saved(tmp_path / "lora.safetensors", renamed))
    assert same(lora.weights, matrices())
    assert lora.alphas == dict.fromkeys(NAMES, 2.0)
    assert lora.layout == "peft"


@pytest.mark.parametrize("start", ["lora_unet_", "lora_unet__"])
def test_names_of_musubi_tuner_get_their_dots_back(tmp_path: Path, start: str) -> None:
    tensors = {}
    for key, tensor in matrices().items():
        module, part = key.split(".lora_")
        part = part.replace("A", "down").replace("B", "up")
        tensors[f"{start}{module.replace('.', '_')}.lora_{part}"] = tensor
        tensors[f"{start}{module.replace('.', '_')}.alpha"] = torch.tensor(1.0)
    lora = read_lora(saved(tmp_path / "lora.safetensors", tensors))
    assert same(lora.weights, matrices())
    assert lora.alphas == dict.fromkeys(NAMES, 1.0)
    assert lora.layout == "musubi"


def test_every_layer_of_the_model_has_one_name_of_musubi_tuner() -> None:
    with torch.device("meta"):
        names = list(linear_layers(LongCatVideoTransformer(depth=2)))
    for name in names:
        found = lora_name(f"lora_unet_{name.replace('.', '_')}.lora_down.weight")
        assert found == (name, "lora_A")


def split(shared: bool, parts: str = "qkv") -> dict[str, Tensor]:
    """The self-attention of a ComfyUI file, each part with a rank of its own unless they share A."""
    generator = Generator().manual_seed(2)
    common = torch.randn(2, 6, generator=generator)
    tensors = {}
    for number, part in enumerate(parts):
        rank = 2 if shared else 2 + number
        base = f"diffusion_model.blocks.0.self_attn.{part}"
        tensors[f"{base}.lora_A.weight"] = common if shared else torch.randn(rank, 6, generator=generator)
        tensors[f"{base}.lora_B.weight"] = torch.randn(4, rank, generator=generator)
        tensors[f"{base}.alpha"] = torch.tensor(1.0 if shared else 1.0 + number)
    return tensors


def split_update(tensors: dict[str, Tensor]) -> Tensor:
    rows = []
    for part in "qkv":
        base = f"diffusion_model.blocks.0.self_attn.{part}"
        if f"{base}.alpha" not in tensors:
            rows.append(torch.zeros(4, 6))
            continue
        down, up = tensors[f"{base}.lora_A.weight"], tensors[f"{base}.lora_B.weight"]
        rows.append(tensors[f"{base}.alpha"] / down.shape[0] * up @ down)
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("shared", "parts", "rank"), [(True, "qkv", 2), (False, "qkv", 9), (True, "qv", 2), (False, "kv", 5)]
)
def test_split_parts_are_fused_and_a_missing_one_stays_unchanged(
    tmp_path: Path, shared: bool, parts: str, rank: int
) -> None:
    tensors = split(shared, parts)
    lora = read_lora(saved(tmp_path / "lora.safetensors", tensors))
    assert lora.layout == "comfyui"
    assert lora.ranks == {NAMES[0]: rank}
    a, b = lora.weights[f"{NAMES[0]}.lora_A.weight"], lora.weights[f"{NAMES[0]}.lora_B.weight"]
    torch.testing.assert_close(
        lora.alphas[NAMES[0]] / rank * b @ a, split_update(tensors), atol=1e-6, rtol=1e-6
    )


def test_a_folder_gives_the_best_file_it_has(tmp_path: Path) -> None:
    lora = LoraWeights(matrices(), dict.fromkeys(NAMES, 1.0))
    for form in ("comfyui", "official", "peft"):
        write_lora(tmp_path / LORA_FILES[form], lora, form)
        assert read_lora(tmp_path).layout == form
    with pytest.raises(CheckpointError, match=r"pytorch_lora_weights\.safetensors does not exist"):
        read_lora(tmp_path.parent)


def test_alpha_is_taken_from_whoever_states_it(tmp_path: Path) -> None:
    keyed = matrices() | {f"{NAMES[0]}.alpha": torch.tensor(3.0)}
    assert read_lora(saved(tmp_path / "a.safetensors", keyed)).alphas == {NAMES[0]: 3.0, NAMES[1]: 2.0}

    config = {"r": 2, "lora_alpha": 5, "alpha_pattern": {r"adaLN_modulation\.\d": 7}}
    prefixed = {f"transformer.{key}": value for key, value in config.items()}
    diffusers = {"lora_adapter_metadata": json.dumps(prefixed), "format": "pt"}
    stated = {NAMES[0]: 5.0, NAMES[1]: 7.0}
    assert read_lora(saved(tmp_path / "b.safetensors", matrices(), diffusers)).alphas == stated

    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_lora(saved(tmp_path / "adapter_model.safetensors", matrices())).alphas == stated
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    rank_stabilised = read_lora(tmp_path / "adapter_model.safetensors")
    assert rank_stabilised.alphas[NAMES[0]] / 2 == pytest.approx(5 / 2**0.5)


def official(chunks: int, *, rank: int = 2) -> dict[str, Tensor]:
    generator = Generator().manual_seed(1)
    base = "lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___attn___lorahyphen___qkv"
    ups = [torch.randn(12 // chunks, rank, generator=generator) for _ in range(chunks)]
    names = ["lora_up.weight"] if chunks == 1 else [f"lora_up.blocks.{j}.weight" for j in range(chunks)]
    return {
        f"{base}.alpha_scale": torch.tensor(0.3),
        f"{base}.lora_down.weight": torch.randn(chunks * rank, 6, generator=generator),
        **{f"{base}.{name}": up for name, up in zip(names, ups, strict=True)},
    }


@pytest.mark.parametrize("chunks", [1, 3])
def test_official_chunks_become_one_exact_update(tmp_path: Path, chunks: int) -> None:
    tensors = official(chunks)
    lora = read_lora(saved(tmp_path / "cfg_step_lora.safetensors", tensors))
    scale, down, *ups = tensors.values()
    expected = torch.cat([up @ part for up, part in zip(ups, down.chunk(chunks), strict=True)])
    a, b = lora.weights[f"{NAMES[0]}.lora_A.weight"], lora.weights[f"{NAMES[0]}.lora_B.weight"]
    torch.testing.assert_close(
        lora.alphas[NAMES[0]] / a.shape[0] * b @ a, scale * expected, atol=1e-6, rtol=1e-6
    )
    assert lora.alphas.keys() == {NAMES[0]}


@pytest.mark.parametrize("kind", ["peft", "official", "split"])
def test_the_head_of_a_file_tells_how_many_parameters_it_gives(tmp_path: Path, kind: str) -> None:
    tensors = {"peft": matrices, "official": lambda: official(3), "split": lambda: split(shared=False)}[kind]
    path = saved(tmp_path / "lora.safetensors", tensors())
    with open_lora(path) as file:
        assert file.num_parameters == sum(weight.numel() for weight in read_lora(path).weights.values())


def without(tensors: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(ending)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"blocks.0.attn.qkv.diff": torch.ones(2)},
            r"qkv.diff, which is not known here; expected keys like transformer\.blocks.*lora___.*lora_unet",
        ),
        ({"blocks.0.attn.qkv.hada_w1": torch.ones(2)}, r"hada_w1, which is of a LoHa; expected keys like"),
        (
            matrices() | {"blocks.0.attn.qkv.dora_scale": torch.ones(12)},
            "holds blocks.0.attn.qkv.dora_scale, which is of DoRA as ComfyUI names it",
        ),
        (
            matrices() | {f"transformer.{NAMES[0]}.lora_A.weight": torch.ones(2, 6)},
            r"holds .*blocks\.0\.attn\.qkv\.lora_A\.weight and .*, which mean the same",
        ),
        (
            matrices() | split(shared=True),
            "holds blocks.0.attn.qkv whole and in parts; write it with one of the two",
        ),
        (
            split(shared=True) | {"blocks.0.self_attn.k.lora_B.weight": torch.ones(5, 2)},
            "mean the same",
        ),
        (
            split(shared=True, parts="q")
            | {
                "blocks.0.self_attn.k.lora_A.weight": torch.ones(2, 6),
                "blocks.0.self_attn.k.lora_B.weight": torch.ones(5, 2),
            },
            "qkv: its parts must have equal sizes, but take and give 6 to 4, 6 to 5 values",
        ),
        (
            split(shared=True) | {"blocks.0.self_attn.q.lora_magnitude_vector": torch.ones(4)},
            "qkv: it is split and has a magnitude; DoRA is only known on whole layers",
        ),
        (without(matrices(), "qkv.lora_B.weight"), "incomplete: blocks.0.attn.qkv has lora_A but no lora_B"),
        (without(official(3), "alpha_scale"), "incomplete: blocks.0.attn.qkv has .* but no alpha_scale"),
        (without(official(3), "blocks.1.weight"), r"but no lora_up\.blocks\.1\.weight"),
        (
            matrices() | {"blocks.0.attn.qkv.lora_B.weight": torch.ones(12, 3)},
            r"matrices of blocks\.0\.attn\.qkv have shapes \(2, 6\), \(12, 3\)",
        ),
        ({}, "is empty; expected keys like"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    path = saved(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_lora(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_torn_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors does not exist"):
        read_lora(tmp_path / "nothing.safetensors")
    path = saved(tmp_path / "lora.safetensors", matrices())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cannot be read .* give a complete safetensors file"):
        read_lora(path)


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write lora\.safetensors"):
        write_lora(tmp_path / "out" / "lora.safetensors", LoraWeights(matrices(), dict.fromkeys(NAMES, 1.0)))
