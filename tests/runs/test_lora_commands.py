"""What `lora inspect` shows and what `lora convert` writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longcat_tune.checkpoint.lora_file import LORA_FILES, LoraWeights, read_lora, write_lora, write_lora_files
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.runs.lora_commands import convert, inspect, strength_given
from tests.checkpoint.lora_readers import SIZES, meituan_file


def lora(rank: int = 4, *, dora: bool = False) -> LoraWeights:
    """Ones, so that norms can be told in the head."""
    weights = {}
    for name, (inputs, outputs) in SIZES.items():
        weights[f"{name}.lora_A.weight"] = torch.ones(rank, inputs)
        weights[f"{name}.lora_B.weight"] = torch.ones(outputs, rank)
        if dora:
            weights[f"{name}.lora_magnitude_vector"] = torch.ones(outputs)
    metadata = {"base_model": "tiny", "step": "7", "targets": "all-linear"}
    return LoraWeights(weights, dict.fromkeys(SIZES, 2.0), metadata)


def shown(capsys: pytest.CaptureFixture[str], *paths: Path, as_json: bool = False) -> str:
    inspect(paths, as_json=as_json)
    return capsys.readouterr().out


def test_inspect_tells_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in write_lora_files(tmp_path, lora(), ["peft", "official", "comfyui"]):
        (report,) = json.loads(shown(capsys, path, as_json=True))
        form = next(form for form, name in LORA_FILES.items() if name == path.name)
        assert (report["format"], report["modules"], report["dora"]) == (form, 20, False)
        assert (report["base_model"], report["step"], report["targets"]) == ("tiny", "7", "all-linear")
        assert report["bytes"] == path.stat().st_size
        kinds = {kind["kind"]: kind for kind in report["kinds"]}
        assert len(kinds) == 11
        qkv = kinds["blocks.*.attn.qkv"]
        assert (qkv["modules"], qkv["ranks"], qkv["alphas"], qkv["scales"]) == (2, [4], [2.0], [0.5])
        # Two layers of 24 x 8 twos.
        assert qkv["norm"] == pytest.approx((2 * 24 * 8 * 4) ** 0.5)


def test_inspect_is_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_lora_files(tmp_path, lora(), ["peft", "official"])
    text = shown(capsys, tmp_path, second)
    assert f"{first}: LoRA of format peft" in text
    assert f"{second}: LoRA of format official" in text
    assert "base_model tiny, step 7, targets all-linear, lora_network_dim 4" in text
    assert "read by longcat-tune and Meituan's LongCat-Video repository" in text
    row = next(line.split() for line in text.splitlines() if "attn.qkv" in line)
    assert row[1:5] == ["2", "4", "2", "0.5"]
    save_file(meituan_file("cfg_step"), tmp_path / "cfg_step_lora.safetensors")
    text = shown(capsys, tmp_path / "cfg_step_lora.safetensors")
    assert "14 layers" in text
    assert "says nothing of base model, step and targets" in text
    write_lora(tmp_path / "dora.safetensors", lora(dora=True))
    assert "DoRA of format peft" in shown(capsys, tmp_path / "dora.safetensors")


@pytest.mark.parametrize("form", LORA_FILES)
def test_convert_writes_every_format_from_meituans(tmp_path: Path, form: str) -> None:
    source, target = tmp_path / "refinement_lora.safetensors", tmp_path / "out" / "lora.safetensors"
    save_file(meituan_file("refinement", rank=4), source)
    convert(source, target, form)
    back, expected = read_lora(target), read_lora(source)
    assert back.alphas.keys() == expected.alphas.keys()
    for name, update in expected.updates():
        other = back.update(name)
        wanted = update.scale * update.up.double() @ update.down.double()
        torch.testing.assert_close(
            other.scale * other.up.double() @ other.down.double(), wanted, atol=1e-6, rtol=1e-6
        )


def test_convert_pads_and_separates_on_request(tmp_path: Path) -> None:
    source, target = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    theirs = meituan_file("cfg_step", rank=16)
    save_file(theirs, source)
    convert(source, target, "official", pad_to=128, separate=True)
    ours = load_file(target)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if "lora_up" in key:
            assert ours[key].shape == (tensor.shape[0], 128)
            assert torch.equal(ours[key][:, :16], tensor)
            assert not ours[key][:, 16:].any()


@pytest.mark.parametrize(
    ("form", "choices", "message"),
    [
        ("peft", {"pad_to": 128}, "pad_to and separate have no effect on the format peft"),
        ("comfyui", {"separate": True}, "have no effect on the format comfyui"),
        ("official", {"pad_to": 2}, r"pad_to \(2\) must be at least the LoRA's largest rank; use 4 or more"),
        ("official", {"separate": True}, "no layer's matrices are block-diagonal"),
    ],
)
def test_convert_refuses_choices_without_effect(
    tmp_path: Path, form: str, choices: dict, message: str
) -> None:
    write_lora(tmp_path / "a.safetensors", lora())
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", form, **choices)
    assert not (tmp_path / "b.safetensors").exists()


def test_convert_overwrites_nothing(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", lora())
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"a\.safetensors exists; choose another name"):
        convert(tmp_path / "a.safetensors", tmp_path / "a.safetensors", "official")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "absent.safetensors", tmp_path / "b.safetensors", "official")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("out/a.safetensors:0.8", ("out/a.safetensors", 0.8)),
        ("a:b.safetensors", ("a:b.safetensors", 1.0)),
        ("a:-.5", ("a", -0.5)),
        ("a:nan", ("a:nan", 1.0)),
    ],
)
def test_a_strength_may_follow_the_name(text: str, expected: tuple[str, float]) -> None:
    assert strength_given(text) == (Path(expected[0]), expected[1])
