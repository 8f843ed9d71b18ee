"""Every format is read back by a reader that is not the package's, with the same update to 1e-6."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from longcat_tune.checkpoint import lora_file
from longcat_tune.checkpoint.lora_file import LORA_FILES, LoraWeights, read_lora, write_lora, write_lora_files
from longcat_tune.checkpoint.lora_writer import OfficialChoices
from longcat_tune.errors import CheckpointError, ConfigError
from tests.checkpoint import lora_readers as others
from tests.checkpoint.lora_readers import SIZES, meituan_file

FORMATS = tuple(LORA_FILES)
RANKS = {name: 2 + number % 3 for number, name in enumerate(SIZES)}


def lora(ranks: dict[str, int] = RANKS, *, alpha: float = 3.0, dora: bool = False) -> LoraWeights:
    """Adapters of several ranks and scales on every layer."""
    generator = Generator().manual_seed(0)
    weights = {}
    for name, rank in ranks.items():
        inputs, outputs = SIZES[name]
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
        if dora:
            weights[f"{name}.lora_magnitude_vector"] = torch.rand(outputs, generator=generator)
    alphas = {name: alpha + number % 2 for number, name in enumerate(ranks)}
    return LoraWeights(weights, alphas, {"base_model": "tiny", "step": "7"})


def dense(one: LoraWeights) -> dict[str, Tensor]:
    """The updates by the definition, in float64."""
    return {
        name: alpha
        / one.ranks[name]
        * one.weights[f"{name}.lora_B.weight"].double()
        @ one.weights[f"{name}.lora_A.weight"].double()
        for name, alpha in one.alphas.items()
    }


def require_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        assert ((got[name] - delta).norm() / delta.norm()).item() < 1e-6, name


def written(path: Path, one: LoraWeights, form: str, **choices: object) -> dict[str, Tensor]:
    write_lora(path, one, form, OfficialChoices(**choices))
    return load_file(path)


def test_the_official_loader_gets_the_same_update_with_the_largest_rank_or_its_default(
    tmp_path: Path,
) -> None:
    one = lora()
    path = tmp_path / "lora.official.safetensors"
    require_same(others.official(written(path, one, "official"), network_dim=4), dense(one))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lora_network_dim"] == "4"
    require_same(others.official(written(path, one, "official", pad_to=128), network_dim=128), dense(one))


@pytest.mark.parametrize("kind", ["cfg_step", "refinement"])
def test_meituans_files_are_read_and_written_as_they_were(tmp_path: Path, kind: str) -> None:
    tensors = meituan_file(kind)
    assert len(tensors) == {"cfg_step": 24 * 2, "refinement": 32 * 2 + 7}[kind]
    save_file(tensors, tmp_path / "theirs.safetensors")
    one = read_lora(tmp_path / "theirs.safetensors")
    expected = others.official(tensors, network_dim=128)
    require_same(dense(one), expected)
    assert one.ranks["blocks.0.attn.qkv"] == 3 * 128
    again = written(tmp_path / "ours.safetensors", one, "official", separate=True)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    fused = written(tmp_path / "fused.safetensors", one, "official")
    require_same(others.official(fused, network_dim=max(one.ranks.values())), expected)


def test_the_wrapper_of_comfyui_finds_every_name_and_the_same_update(tmp_path: Path) -> None:
    one = lora()
    tensors = written(tmp_path / "lora.comfyui.safetensors", one, "comfyui")
    assert "diffusion_model.blocks.1.modulation.1.lora_A.weight" in tensors
    assert len(tensors) == 3 * len(others.WRAPPED)
    require_same(others.comfyui(tensors), dense(one))


def test_parts_that_were_trained_apart_keep_their_own_small_ranks_in_comfyui(tmp_path: Path) -> None:
    save_file(meituan_file("refinement", rank=5), tmp_path / "theirs.safetensors")
    one = read_lora(tmp_path / "theirs.safetensors")
    tensors = written(tmp_path / "lora.safetensors", one, "comfyui")
    assert tensors["diffusion_model.blocks.0.self_attn.k.lora_A.weight"].shape == (5, others.HIDDEN)
    require_same(others.comfyui(tensors), dense(one))


def test_diffsynth_gets_the_same_update_without_alpha(tmp_path: Path) -> None:
    tensors = written(tmp_path / "lora.safetensors", lora(), "diffsynth")
    assert not [key for key in tensors if "alpha" in key]
    require_same(others.diffsynth(tensors), dense(lora()))


class Model(nn.Module):
    """Layers of the small model under their names, for PEFT to adapt."""

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, outputs) in SIZES.items():
            parent: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, nn.Linear(inputs, outputs, bias=False))


def test_peft_builds_the_adapter_from_the_files_own_metadata(tmp_path: Path) -> None:
    one = lora()
    path = tmp_path / "lora.safetensors"
    write_lora(path, one)
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    stored = {key.removeprefix("transformer."): weight for key, weight in load_file(path).items()}
    model = inject_adapter_in_model(LoraConfig(**config), Model())
    result = set_peft_model_state_dict(model, stored)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if ".lora_" in key]
    got = {name: model.get_submodule(name).get_delta_weight("default").double() for name in SIZES}
    require_same(got, dense(one))


def test_the_code_on_the_page_of_formats_loads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lora_formats.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    write_lora(Path("pytorch_lora_weights.safetensors"), lora())
    names = {"dit": Model()}
    exec(code, names)
    got = {name: names["dit"].get_submodule(name).get_delta_weight("default").double() for name in SIZES}
    require_same(got, dense(lora()))


class DiffusersModel(PeftAdapterMixin, Model):
    """The same layers with diffusers' loader."""


@pytest.mark.parametrize("dora", [False, True])
def test_a_loader_in_the_style_of_diffusers_needs_nothing_but_the_file(tmp_path: Path, dora: bool) -> None:
    one, model = lora(dora=dora), DiffusersModel()
    write_lora(tmp_path / "lora.safetensors", one)
    model.load_lora_adapter(
        tmp_path,
        weight_name="lora.safetensors",
        use_safetensors=True,
        prefix="transformer",
        adapter_name="mine",
    )
    got = {name: model.get_submodule(name).get_delta_weight("mine").double() for name in SIZES}
    require_same(got, dense(one))


def test_a_dora_reaches_peft_with_its_magnitudes(tmp_path: Path) -> None:
    one = lora(dora=True)
    write_lora(tmp_path / "lora.safetensors", one)
    stored = {
        key.removeprefix("transformer."): weight
        for key, weight in load_file(tmp_path / "lora.safetensors").items()
    }
    with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    model = inject_adapter_in_model(LoraConfig(**config), Model())
    result = set_peft_model_state_dict(model, stored)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if ".lora_" in key]
    name = "blocks.1.ffn.w2"
    magnitude = model.get_submodule(name).lora_magnitude_vector["default"].weight
    assert torch.equal(magnitude, one.weights[f"{name}.lora_magnitude_vector"])
    back = read_lora(tmp_path / "lora.safetensors")
    assert back.has_dora
    assert torch.equal(back.weights[f"{name}.lora_magnitude_vector"], magnitude)


@pytest.mark.parametrize("form", ["official", "comfyui", "diffsynth"])
def test_a_format_without_magnitudes_refuses_dora(tmp_path: Path, form: str) -> None:
    with pytest.raises(ConfigError, match=rf"the format {form} cannot hold DoRA: .* write peft, or merge"):
        write_lora_files(tmp_path, lora(dora=True), ["peft", form])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FORMATS, 2)))
def test_round_trips_keep_the_update_and_the_ranks(tmp_path: Path, first: str, second: str) -> None:
    one = lora()
    for step, form in enumerate((first, second, first)):
        path = tmp_path / f"{step}.safetensors"
        write_lora(path, one, form)
        one = read_lora(path)
    require_same(dense(one), dense(lora()))
    assert one.ranks == RANKS
    assert one.metadata["step"] == "7"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", FORMATS)
def test_other_dtypes_lose_nothing(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    one = lora()
    one = LoraWeights({key: weight.to(dtype) for key, weight in one.weights.items()}, one.alphas)
    write_lora(tmp_path / "lora.safetensors", one, form)
    require_same(dense(read_lora(tmp_path / "lora.safetensors")), dense(one))


def test_padding_and_fusing_leave_the_very_same_matrices(tmp_path: Path) -> None:
    one = lora()
    for form, choices in (("official", OfficialChoices(pad_to=32)), ("comfyui", OfficialChoices())):
        write_lora(tmp_path / "lora.safetensors", one, form, choices)
        back = read_lora(tmp_path / "lora.safetensors")
        assert all(torch.equal(back.weights[key], weight) for key, weight in one.weights.items())


def test_a_fresh_adapter_survives_every_format(tmp_path: Path) -> None:
    one = lora()
    weights = {key: weight * (".lora_A." in key) for key, weight in one.weights.items()}
    for path in write_lora_files(tmp_path, LoraWeights(weights, one.alphas), FORMATS):
        assert all(not delta.any() for delta in dense(read_lora(path)).values())
        assert read_lora(path).alphas.keys() == one.alphas.keys()


def test_files_of_a_save_have_their_own_names(tmp_path: Path) -> None:
    paths = write_lora_files(tmp_path / "out", lora(), ["peft", "official", "comfyui"])
    assert [path.name for path in paths] == [
        "pytorch_lora_weights.safetensors",
        "lora.official.safetensors",
        "lora.comfyui.safetensors",
    ]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (OfficialChoices(pad_to=3), r"pad_to \(3\) must be at least the LoRA's largest rank; use 4 or more"),
        (OfficialChoices(separate=True), r"separate \(true\): no layer's matrices are block-diagonal"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(
    tmp_path: Path, choices: OfficialChoices, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_lora(tmp_path / "lora.safetensors", lora(), "official", choices)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_comfyui_has_no_name_for_is_refused(tmp_path: Path) -> None:
    one = lora({"final_layer.linear": 2})
    renamed = {key.replace("final_layer.linear", "extra.proj"): value for key, value in one.weights.items()}
    with pytest.raises(ConfigError, match=r"comfyui has no name for extra\.proj \(1 such layers\)"):
        write_lora(tmp_path / "lora.safetensors", LoraWeights(renamed, {"extra.proj": 1.0}), "comfyui")


@pytest.mark.parametrize(
    ("form", "key"),
    [
        *itertools.product(("peft", "comfyui", "diffsynth"), (".lora_A.", ".lora_B.")),
        *itertools.product(["official"], (".lora_down.", ".lora_up.")),
        ("official", ".alpha_scale"),
        ("comfyui", ".alpha"),
    ],
)
def test_a_write_that_does_not_read_back_equal_keeps_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, key: str
) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora(alpha=5.0), form)
    former = path.read_bytes()
    stream = lora_file.write_tensor_stream
    spoiled = []

    def spoil(part: Path, layouts: object, tensors: object, metadata: object) -> None:
        def bent() -> object:
            for name, tensor in tensors:
                if key in name and not spoiled:
                    spoiled.append(name)
                    tensor = tensor * (1 + 3e-6)
                yield name, tensor

        stream(part, layouts, bent(), metadata)

    monkeypatch.setattr(lora_file, "write_tensor_stream", spoil)
    with pytest.raises(
        CheckpointError, match=rf"format {form} did not give back .* differs by [1-4]\.\de-06"
    ):
        write_lora(path, lora(), form)
    assert spoiled
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(tmp_path: Path) -> None:
    one = lora()
    one.weights["blocks.0.attn.proj.lora_B.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj differs by nan .* weights are finite"):
        write_lora(tmp_path / "lora.safetensors", one)
