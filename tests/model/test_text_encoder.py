"""The text encoder's door: cleaning as the released model does it, both families, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

from longcat_tune.errors import CheckpointError
from longcat_tune.memory.frozen import freeze_linears
from longcat_tune.memory.quantize import quantizer
from longcat_tune.model.text_encoder import (
    TextEncoder,
    clean_prompt,
    load_text_encoder,
    text_encoder_identity,
)

TINY = Path(__file__).parents[2] / "longcat_tune" / "assets" / "tiny"
COMMITTED = Path(__file__).parents[1] / "golden" / "data"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "model"
GOLDEN = SHARED if SHARED.is_dir() else COMMITTED
CAPTION = "a red circle moves right on a blue background"


def load(checkpoint: Path = TINY, **changes) -> TextEncoder:
    arguments = {
        "choice": "auto",
        "caption_channels": 64,
        "zero_pad": False,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return load_text_encoder(checkpoint, **(arguments | changes))


@cache
def tiny() -> TextEncoder:
    return load()


def copied(tmp_path: Path) -> Path:
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(TINY / name, tmp_path / name)
    return tmp_path


def qwen_checkpoint(folder: Path) -> Path:
    """A random Qwen-2.5-VL with one layer, beside the miniature's tokenizer."""
    text = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder / "text_encoder")
    shutil.copytree(TINY / "tokenizer", folder / "tokenizer")
    return folder


@pytest.mark.parametrize(
    ("raw", "clean"), json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["prompt_clean"]
)
def test_prompts_are_cleaned_as_officially(raw, clean):
    assert clean_prompt(raw) == clean


def test_entities_are_resolved_twice_even_beside_markup():
    # ftfy leaves entities alone in text that has a tag.
    assert clean_prompt("<i>salt</i> &amp;amp; pepper") == "<i>salt</i> & pepper"


def test_features_are_the_encoder_s_own_without_padding():
    [features] = tiny().encode([CAPTION])
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    module = UMT5EncoderModel.from_pretrained(TINY / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        expected = module(**tokenizer(CAPTION, return_tensors="pt")).last_hidden_state[0]
    assert features.text_LD.shape == (10, 64)
    torch.testing.assert_close(features.text_LD, expected, rtol=1e-5, atol=1e-5)


def test_encoder_sees_exactly_512_tokens():
    seen = []
    hook = tiny().module.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["input_ids"].shape, given["attention_mask"].sum().item())),
        with_kwargs=True,
    )
    tiny().encode([CAPTION])
    hook.remove()
    assert seen == [((1, 512), 10)]


def test_empty_prompt_is_one_token():
    [features] = tiny().encode([""])
    assert features.text_LD.shape == (1, 64)


def test_long_captions_are_cut_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        cut, whole = tiny().encode([" ".join(["red"] * 600), CAPTION])
    assert cut.text_LD.shape == (512, 64)
    assert whole.text_LD.shape == (10, 64)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 captions have more than 512 tokens (at most 601); their ends are cut off"
    ]


@pytest.mark.parametrize("text", ["A girl waves: 你好! 🙂", "Ünïcödé", "x\u0000y"])
def test_miniature_tokenizer_knows_any_text(text):
    ids = tiny().tokenizer(text).input_ids
    assert tiny().tokenizer.unk_token_id not in ids
    assert tiny().tokenizer.decode(ids, skip_special_tokens=True) == text


def test_miniature_features_tell_prompts_apart():
    red, green, left = (
        features.text_LD
        for features in tiny().encode(
            [CAPTION, CAPTION.replace("red", "green"), CAPTION.replace("right", "left")]
        )
    )
    assert 0.9 < red.std() < 1.1
    for other, word in ((green, 1), (left, 4)):
        change = (red - other).square().mean(dim=1).sqrt()
        assert change[word] > 0.4
        assert change.argmax() == word


def test_bf16_features_are_near_float32():
    [exact], [rounded] = tiny().encode([CAPTION]), load(dtype=torch.bfloat16).encode([CAPTION])
    assert rounded.text_LD.dtype == torch.bfloat16
    assert (exact.text_LD - rounded.text_LD.float()).square().mean().sqrt() < 0.03


def test_qwen_gives_its_language_model_s_last_hidden_state(tmp_path):
    checkpoint = qwen_checkpoint(tmp_path)
    [features] = load(checkpoint, choice="qwen2_5_vl", caption_channels=32).encode([CAPTION])
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint / "text_encoder", dtype=torch.float32
    )
    ids = AutoTokenizer.from_pretrained(TINY / "tokenizer")(CAPTION, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(features.text_LD, expected, rtol=1e-4, atol=1e-4)


def test_narrower_encoder_needs_consent_to_zeros(tmp_path, caplog):
    checkpoint = qwen_checkpoint(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint / 'text_encoder'}: gives features 32 wide, the transformer takes 64 "
        "(caption_channels); use the text encoder of the transformer's own checkpoint, or set "
        "text_encoder_zero_pad: true to fill up with zeros"
    )
    with caplog.at_level(logging.WARNING):
        [features] = load(checkpoint, zero_pad=True).encode([CAPTION])
    assert "filled up with zeros" in caplog.text
    assert features.text_LD.shape == (10, 64)
    assert features.text_LD[:, :32].abs().min() > 0
    assert features.text_LD[:, 32:].abs().max() == 0


def test_wider_encoder_is_refused_even_with_zero_pad():
    with pytest.raises(CheckpointError, match="64 wide, the transformer takes 48"):
        load(caption_channels=48, zero_pad=True)


def test_other_encoder_than_asked_for_is_refused():
    with pytest.raises(
        CheckpointError, match=r"text_encoder \(qwen2_5_vl\) is not what .* holds, which is umt5"
    ):
        load(choice="qwen2_5_vl")


def test_unknown_encoder_is_refused(tmp_path):
    checkpoint = copied(tmp_path)
    (checkpoint / "text_encoder" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"model_type \(bert\) must be umt5 or qwen2_5_vl"):
        load(checkpoint)


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]
)
def test_missing_file_is_named(tmp_path, name):
    checkpoint = copied(tmp_path)
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match="the checkpoint is incomplete, fetch it again") as caught:
        text_encoder_identity(checkpoint)
    assert str(checkpoint / name.partition("/")[0]) in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path):
    checkpoint = copied(tmp_path)
    weights = checkpoint / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        tensors | {"encoder.final_layer_norm.weight": torch.ones(8)}, weights, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"1 mismatched keys .*final_layer_norm"):
        load(checkpoint)
    del tensors["shared.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"2 missing keys \(encoder\.embed_tokens\.weight, shared\.weight\)"
    ):
        load(checkpoint)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read as umt5"):
        load(checkpoint)


def test_damaged_tokenizer_and_config_are_refused(tmp_path):
    checkpoint = copied(tmp_path)
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{bad")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        load(checkpoint)
    (checkpoint / "text_encoder" / "config.json").write_text("{bad")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON \(line 1\)"):
        load(checkpoint)


def test_identity_follows_encoder_and_tokenizer(tmp_path):
    checkpoint = copied(tmp_path)
    seen = {text_encoder_identity(checkpoint)}
    assert text_encoder_identity(TINY) in seen
    for name in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        path = checkpoint / name
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
        seen.add(text_encoder_identity(checkpoint))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("precision", "error"), [("int8-quanto", 0.02), ("fp8-quanto", 0.08), ("int4-quanto", 0.3)]
)
def test_quantized_layers_change_the_features_as_little_as_their_bits_allow(precision: str, error: float):
    cpu = torch.device("cpu")
    quantize = quantizer(precision, device=cpu, via=cpu, key="text_encoder_1_precision")
    encoder = load(prepare=lambda module: freeze_linears(module, quantize=quantize))
    layers = [one for one in encoder.module.modules() if isinstance(one, torch.nn.Linear)]
    assert len(layers) > 10
    assert all(layer.weight.dtype == torch.int8 for layer in layers)
    exact, close = tiny().encode([CAPTION])[0], encoder.encode([CAPTION])[0]
    assert close.text_LD.dtype == torch.float32
    assert 0 < (exact.text_LD - close.text_LD).norm() / exact.text_LD.norm() < error
