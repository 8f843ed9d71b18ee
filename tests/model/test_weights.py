"""Loading the transformer: the release's shapes, strictness, messages; builds small checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.weights import INDEX_NAME, load_transformer, resolve_checkpoint

FULL_SHAPES = Path(__file__).parents[1] / "golden" / "data" / "full_config_state_dict.json"
CPU = torch.device("cpu")
SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 8,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 16,
    "frequency_embedding_size": 16,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
}


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Two shards and an index, as the release."""
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(SMALL | {"enable_bsa": False}))


def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LongCatVideoTransformer(**SMALL).state_dict()


def test_names_shapes_and_count_equal_the_release() -> None:
    released = json.loads(FULL_SHAPES.read_text())
    with torch.device("meta"):
        model = LongCatVideoTransformer()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == released["state_dict"]
    assert len(shapes) == 1022
    assert sum(p.numel() for p in model.parameters()) == 13_581_071_424


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_load_in_any_dtype_and_frozen(tmp_path: Path, dtype: torch.dtype) -> None:
    state = small_state()
    write_checkpoint(tmp_path, state)
    model = load_transformer(tmp_path, dtype=dtype, device=CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].to(dtype)), name
    assert not any(p.requires_grad for p in model.parameters())


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = small_state()
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.1.attn.proj.bias"}
    write_checkpoint(tmp_path, lacking)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors: blocks\.1\.attn\.proj\.bias; fetch"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)
    write_checkpoint(tmp_path, state | {"blocks.9.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"has unknown 1 tensors: blocks\.9\.extra"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)
    write_checkpoint(tmp_path, state | {"final_layer.linear.bias": torch.zeros(3)})
    expected = r"final_layer\.linear\.bias has shape \[3\], the model's is \[16\]"
    with pytest.raises(CheckpointError, match=expected):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_state())
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"b\.safetensors: damaged or incomplete"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: this shard is missing"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)


def test_a_config_without_a_field_is_not_guessed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_state())
    fields = {name: value for name, value in SMALL.items() if name != "depth"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="lacks depth"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU)


def test_a_path_that_is_neither_folder_nor_hub_id_is_explained() -> None:
    with pytest.raises(CheckpointError, match="checkpoint /no/such/folder: no such folder, and not a hub id"):
        resolve_checkpoint("/no/such/folder", flavour="final")


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_checkpoint(str(tmp_path), flavour="final") == tmp_path


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def snapshot(hub_id: str, *, allow_patterns: list[str]) -> str:
        assert hub_id == "meituan-longcat/LongCat-Video"
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_checkpoint(None, flavour="final", components=("vae",)) == tmp_path
    resolve_checkpoint(None, flavour="final", components=("dit",))
    assert asked == [["vae/*"], ["dit/*", "config.json", "diffusion_pytorch_model*"]]


def test_a_name_that_the_hub_cannot_have_is_explained() -> None:
    with pytest.raises(
        CheckpointError, match=r"checkpoint a b/c: could not be downloaded \(.*; check the network"
    ):
        resolve_checkpoint("a b/c", flavour="final")


def test_blocks_are_read_in_their_order_and_handed_over_whole(tmp_path: Path) -> None:
    state = small_state()
    write_checkpoint(tmp_path, state)
    read: list[int] = []
    prepared: list[int] = []

    def block_device(number: int) -> torch.device:
        read.append(number)
        return CPU

    def prepare(number: int, block: nn.Module) -> None:
        prepared.append(number)
        assert read == prepared, "the next block is read before this one is in its final form"
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, state[f"blocks.{number}.{name}"]), name
        block.ffn.w1 = nn.Linear(1, 1, device="meta")

    model = load_transformer(
        tmp_path, dtype=torch.float32, device=CPU, prepare_block=prepare, block_device=block_device
    )
    assert prepared == [0, 1]
    assert [block.ffn.w1.in_features for block in model.blocks] == [1, 1]
    assert not model.training


def test_a_wrong_tensor_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_state() | {"blocks.1.attn.proj.bias": torch.zeros(3)})

    def never(number: int, _: nn.Module) -> None:
        raise AssertionError(f"block {number} was read")

    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.proj\.bias has shape \[3\]"):
        load_transformer(tmp_path, dtype=torch.float32, device=CPU, prepare_block=never)
