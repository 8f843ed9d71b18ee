"""The form has every key once, and a config that goes through it says the same as before."""

from __future__ import annotations

import json

import pytest

from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import keys
from longcat_tune.server.schema_form import (
    CHOSEN_FIRST,
    MANAGED_KEYS,
    fields_of_values,
    form_field,
    form_sections,
    values_of_fields,
)


def test_every_key_stands_on_the_form_once() -> None:
    placed = [field.key for section in form_sections() for field in section.fields]
    assert sorted([*placed, *CHOSEN_FIRST, *MANAGED_KEYS]) == sorted(keys())


def test_a_field_knows_what_the_schema_says() -> None:
    field = form_field("lora_dropout")
    assert (field.kind, field.default, field.accepts) == ("number", "0", "number, >= 0, < 1")
    assert field.help == keys()["lora_dropout"].field.description
    assert (field.control, field.input_mode) == ("line", "decimal")


def test_a_choice_leaves_the_default_to_the_empty_option() -> None:
    assert form_field("memory_plan").choices == ("auto",)
    assert form_field("gradient_checkpointing").choices == ("false",)
    assert form_field("lora_format").choices == ("peft", "official", "comfyui")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lora_rank", " 16 ", 16),
        ("max_train_steps", "1e3", 1000),
        ("learning_rate", "2e-4", 2e-4),
        ("use_dora", "true", True),
        ("gradient_checkpointing", "false", False),
        ("compile", "true", "true"),
        ("lora_target", '["attn.qkv", "ffn"]', ["attn.qkv", "ffn"]),
        ("lora_rank_pattern", '{"attn": 4}', {"attn": 4}),
        ("lora_format", "peft, comfyui", "peft, comfyui"),
        ("lora_rank", "many", "many"),
        ("lora_rank_pattern", '{"attn"', '{"attn"'),
        ("lora_target", "[" * 5000, "[" * 5000),
        ("validation_prompt", "12", "12"),
    ],
)
def test_the_text_of_a_field_becomes_what_a_config_holds(key: str, text: str, value: object) -> None:
    assert values_of_fields({key: text}) == {key: value}
    assert type(values_of_fields({key: text})[key]) is type(value)


@pytest.mark.parametrize("key", sorted({*keys()} - MANAGED_KEYS))
def test_a_default_is_not_written(key: str) -> None:
    default = form_field(key).default
    assert values_of_fields({key: ""}) == {}
    if default not in {"null", '""'}:
        assert values_of_fields({key: default}) == {}


def test_true_is_not_taken_for_the_default_1() -> None:
    assert values_of_fields({"train_batch_size": "true"}) == {"train_batch_size": True}


def test_a_config_that_goes_through_the_form_means_the_same(tmp_path) -> None:
    config = {
        "model_flavour": "tiny",
        "lora_rank": 16,
        "lora_alpha": 8.5,
        "lora_target": ["blocks\\.1\\.attn.*", "x{2,3}"],
        "lora_rank_pattern": {"attn.qkv": 4},
        "lora_format": ["peft", "comfyui"],
        "learning_rate": 3e-5,
        "use_ema": True,
        "gradient_checkpointing": False,
        "compile": "false",
        "validation_prompt": '红风筝, "quoted"',
        "validation_resolution": ["832x480", "480x832"],
        "resume_from_checkpoint": "none",
        "max_train_steps": 7,
    }
    through = values_of_fields(fields_of_values(config))
    assert [loaded(tmp_path, one).flat() for one in (config, through)] == [
        loaded(tmp_path, config).flat()
    ] * 2
    assert list(through) == [key for key in keys() if key in config]


def loaded(folder, values):
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return load_run_config(path, {})
