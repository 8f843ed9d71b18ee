"""A merged folder is complete, equals the LoRA at run time, and never replaces anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from longcat_tune.checkpoint.lora_file import LoraWeights, write_lora
from longcat_tune.errors import CheckpointError, ConfigError, UserError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import (
    add_lora,
    add_magnitudes,
    load_lora,
    lora_alphas,
    lora_state,
    set_lora_scale,
)
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.model.weights import load_transformer, resolve_checkpoint
from longcat_tune.runs import lora_merge
from longcat_tune.runs.lora_merge import merge

CPU = torch.device("cpu")
ADAPTED = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj))\.weight")
TINY = resolve_checkpoint(None, flavour="tiny") / "dit"


def transformer(folder: Path, dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
    return load_transformer(folder, dtype=dtype, device=CPU)


def float32_base(folder: Path) -> Path:
    """The miniature in float32, so that merging rounds nothing to speak of; with a file that nobody knows.

    Its weights are random, of unit gain: what it has been trained to would decide how far rounding grows.
    """
    folder.mkdir()
    generator = Generator().manual_seed(0)
    for path in TINY.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
            continue
        tensors = {
            name: torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5
            if tensor.ndim > 1
            else tensor.float()
            for name, tensor in load_file(path).items()
        }
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    (folder / "README.md").write_text("about")
    return folder


def trained(folder: Path, name: str, *, seed: int, dora: bool, target: str = "all-linear") -> Path:
    """A file of an adapter that does something."""
    model = transformer(TINY)
    targets = lora_target_modules(model, target)
    add_lora(model, targets=targets, rank=2, alpha=1.0, generator=Generator().manual_seed(seed))
    if dora:
        add_magnitudes(model)
    generator = Generator().manual_seed(seed)
    weights = {
        key: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for key, weight in lora_state(model).items()
    }
    write_lora(folder / name, LoraWeights(weights, lora_alphas(model), {"step": str(seed)}))
    return folder / name


def outputs(model: LongCatVideoTransformer) -> Tensor:
    generator = Generator().manual_seed(1)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, 64, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([900.0]), text)


def test_two_loras_with_strengths_merge_to_what_they_compute(tmp_path: Path) -> None:
    base = float32_base(tmp_path / "base")
    loras = [
        (trained(tmp_path, "a.safetensors", seed=1, dora=False, target="attention"), 0.7),
        (trained(tmp_path, "b.safetensors", seed=2, dora=True), 0.5),
    ]
    out = tmp_path / "new" / "merged"
    merge(str(base), loras, out)
    running = transformer(base)
    for number, (path, strength) in enumerate(loras):
        lora = lora_merge.read_lora(path)
        load_lora(running, lora.weights, lora.alphas, adapter=str(number))
        set_lora_scale(running, strength, adapter=str(number))
    torch.testing.assert_close(outputs(transformer(out)), outputs(running), atol=3e-6, rtol=3e-6)
    assert (outputs(running) - outputs(transformer(base))).abs().max() > 0.05


def test_the_folder_is_complete_and_what_no_lora_adapts_is_the_same(tmp_path: Path) -> None:
    base, out = float32_base(tmp_path / "base"), tmp_path / "merged"
    merge(str(base), [(trained(tmp_path, "a.safetensors", seed=1, dora=False, target="attention"), 1.0)], out)
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in out.iterdir()} == names | {"merged_loras.json"}
    for name in names:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (base / name).read_bytes()
            continue
        before, after = load_file(base / name), load_file(out / name)
        assert before.keys() == after.keys()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == {key for key in before if ADAPTED.fullmatch(key)}
        with safe_open(out / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    record = json.loads((out / "merged_loras.json").read_text())
    assert record["base"] == str(base)
    assert record["loras"][0]["strength"] == 1.0
    assert record["loras"][0]["metadata"]["step"] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base", "merged"]


def test_bf16_weights_are_rounded_once(tmp_path: Path) -> None:
    path = trained(tmp_path, "a.safetensors", seed=1, dora=False)
    merge("tiny", [(path, 0.3), (path, 0.3), (path, 0.4)], tmp_path / "merged")
    lora = lora_merge.read_lora(path)
    before, after = transformer(TINY, torch.bfloat16), transformer(tmp_path / "merged", torch.bfloat16)
    dtypes = {tensor.dtype for shard in TINY.glob("*.safetensors") for tensor in load_file(shard).values()}
    assert dtypes == {torch.bfloat16}
    for name, update in lora.updates():
        weight = before.get_submodule(name).weight.double()
        exact = weight + update.scale * update.up.double() @ update.down.double()
        error = (after.get_submodule(name).weight.double() - exact).abs()
        # Half of the last of eight bits, and a little for sums in float32.
        assert (error <= exact.abs() * 2**-8 * 0.501 * 2 + 1e-7).all()


@pytest.mark.parametrize("inside", [False, True])
def test_an_existing_folder_is_not_written_to(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    path = trained(tmp_path, "a.safetensors", seed=1, dora=False)
    if inside:
        (out / "mine").write_text("mine")
        with pytest.raises(ConfigError, match="merged exists; merge writes to a new folder"):
            merge("tiny", [(path, 1.0)], out)
        assert [path.name for path in out.iterdir()] == ["mine"]
    else:
        merge("tiny", [(path, 1.0)], out)
        assert (out / "config.json").is_file()


def test_a_lora_of_another_model_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    path = trained(tmp_path, "a.safetensors", seed=1, dora=False)
    lora = lora_merge.read_lora(path)
    wrong = {key: weight.repeat(2, 2) for key, weight in lora.weights.items()}
    write_lora(tmp_path / "b.safetensors", LoraWeights(wrong, lora.alphas))
    with pytest.raises(CheckpointError, match=r"b\.safetensors: the LoRA's blocks.* made for another model"):
        merge("tiny", [(path, 1.0), (tmp_path / "b.safetensors", 1.0)], tmp_path / "merged")
    with pytest.raises(ConfigError, match="nothing to merge: give at least one LoRA file"):
        merge("tiny", [], tmp_path / "merged")
    with pytest.raises(CheckpointError, match="no such folder"):
        merge(str(tmp_path / "nowhere"), [(path, 1.0)], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_full_disk_or_a_damaged_shard_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = float32_base(tmp_path / "base")
    path = trained(tmp_path, "a.safetensors", seed=1, dora=False)
    shard = sorted(base.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: damaged or incomplete"):
        merge(str(base), [(path, 1.0)], tmp_path / "merged")
    shard.write_bytes(whole)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_merge, "write_tensor_stream", full)
    with pytest.raises(UserError, match="the disk is full"):
        merge(str(base), [(path, 1.0)], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base"]


def test_quantized_weights_are_not_merged_into(tmp_path: Path) -> None:
    base = float32_base(tmp_path / "base")
    for shard in base.glob("*.safetensors"):
        tensors = {
            name: tensor.to(torch.float8_e4m3fn) if name.endswith("qkv.weight") else tensor
            for name, tensor in load_file(shard).items()
        }
        save_file(tensors, shard, metadata={"format": "pt"})
    path = trained(tmp_path, "a.safetensors", seed=1, dora=False)
    with pytest.raises(CheckpointError, match=r"qkv\.weight is torch\.float8.* merge into the bf16 weights"):
        merge(str(base), [(path, 1.0)], tmp_path / "merged")
