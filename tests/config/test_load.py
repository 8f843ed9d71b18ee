"""config.json and the command line: spellings, foreign keys, and the whole message of every mistake."""

from __future__ import annotations

import logging

import pytest

from longcat_tune.config.foreign import CONFIG_KEYS
from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import RunConfig, keys
from tests.config.helpers import config_message, config_of


def test_an_empty_config_and_none_at_all_are_the_defaults(tmp_path):
    assert config_of(tmp_path) == load_run_config(None, {}) == RunConfig()


def test_keys_may_have_dashes_and_values_may_be_null_or_empty(tmp_path):
    config = config_of(tmp_path, {"--lora-rank": 4, "seed": None, "pretrained_model_name_or_path": ""})
    assert (config.lora.lora_rank, config.lora.lora_alpha, config.training.seed) == (4, 4.0, 42)
    assert config.model.pretrained_model_name_or_path is None


@pytest.mark.parametrize(
    ("written", "value", "key", "taken"),
    [
        ("attention_mechanism", "native-math", "attention_implementation", "math"),
        ("validation_steps", 7, "validation_step_interval", 7),
        ("checkpointing_steps", 7, "checkpoint_step_interval", 7),
        ("save_total_limit", 7, "checkpoints_total_limit", 7),
        ("text_encoder_precision", "fp32", "text_encoder_1_precision", "fp32"),
        ("peft_lora_target_modules", ["attn.qkv"], "lora_target", ["attn.qkv"]),
        ("base_model_precision", "no_change", "base_model_precision", "bf16"),
        ("vae_dtype", "default", "vae_dtype", "bf16"),
        ("caption_strategy", "instance_prompt", "caption_strategy", "instanceprompt"),
        ("optimizer", "adamw_bf16", "optimizer", "adamw"),
        ("optimizer", "torch-adamw", "optimizer", "adamw"),
        ("optimizer", "optimi-adamw", "optimizer", "adamw"),
        ("lora_format", "diffusers", "lora_format", ["peft"]),
        ("max_train_steps", 0, "max_train_steps", None),
        ("resume_from_checkpoint", "none", "resume_from_checkpoint", "none"),
        ("learning_rate", "1e-4", "learning_rate", 1e-4),
    ],
)
def test_other_spellings_are_taken(tmp_path, written, value, key, taken):
    assert config_of(tmp_path, {written: value}).flat()[key] == taken


def test_a_mapped_optimizer_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config_of(tmp_path, {"optimizer": "adamw_bf16"})
    assert caplog.messages == ["optimizer: adamw_bf16 is taken as adamw"]


def test_another_bucket_grid_is_replaced_with_one_warning(tmp_path, caplog):
    assert config_of(tmp_path, {"aspect_bucket_alignment": 32}).data.aspect_bucket_alignment == 64
    assert caplog.messages == ["aspect_bucket_alignment: 32 is replaced by 64, which the model needs"]


def test_keys_without_meaning_are_warned_of_once(tmp_path, caplog):
    given = {
        "max_workers": 8,
        "webhook_config": "x",
        "ramtorch": False,
        "peft_lora_mode": "standard",
        "num_processes": 1,
    }
    assert config_of(tmp_path, given) == RunConfig()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        (
            "SimpleTuner keys that have no meaning here had no effect: max_workers, "
            "num_processes, peft_lora_mode, ramtorch, webhook_config"
        )
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "ramtorch",
            True,
            "ramtorch (true) does not exist here; use musubi_blocks_to_swap or enable_group_offload",
        ),
        (
            "lora_type",
            "lycoris",
            "lora_type (lycoris) does not exist here; only standard LoRA is trained; remove it",
        ),
        (
            "input_perturbation",
            0.1,
            "input_perturbation (0.1) does not exist here; the model's flow has plain noise; remove it",
        ),
        ("optimizer_beta1", 0.8, "optimizer_beta1 (0.8) does not exist here; use adam_beta1"),
    ],
)
def test_keys_that_would_change_the_run_say_what_to_use(tmp_path, key, value, message):
    assert config_message(tmp_path, {key: value}) == f"DIR/config.json: {message}"


def test_foreign_keys_and_ours_do_not_overlap():
    assert CONFIG_KEYS.names() & (keys().keys() | CONFIG_KEYS.aliases.keys()) == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_rnk": 8}, "lora_rnk (8) is not a known key; did you mean lora_rank?"),
        ({"zzz": [1]}, "zzz ([1]) is not a known key; docs/config.md lists all keys"),
        ({"lora_rank": 0}, "lora_rank (0) must be at least 1; remove it for the default, 8"),
        ({"lora_rank": True}, "lora_rank (true) must be a number; correct it"),
        ({"lora_rank": 8.5}, "lora_rank (8.5) must be a whole number; remove it for the default, 8"),
        ({"seed": "x"}, "seed (x) must be a whole number; remove it for the default, 42"),
        ({"learning_rate": 0}, "learning_rate (0) must be above 0; remove it for the default, 0.0001"),
        ({"use_ema": "maybe"}, "use_ema (maybe) must be true or false; remove it for the default, false"),
        ({"validation_prompt": 5}, "validation_prompt (5) must be text; correct it or remove it"),
        ({"lora_dropout": 1}, "lora_dropout (1) must be below 1; remove it for the default, 0"),
        ({"text_encoder": "t5"}, "text_encoder (t5) must be one of auto, umt5, qwen2_5_vl; use umt5"),
        ({"model_type": "full"}, "model_type (full) must be lora; use lora"),
        ({"vae_dtype": "fp16"}, "vae_dtype (fp16) must be one of bf16, fp32; use bf16"),
        (
            {"lora_format": ["peft", "zip"]},
            "lora_format (zip) must be one of peft, official, comfyui; remove it for the default, peft",
        ),
        (
            {"lora_format": ["zip"]},
            "lora_format (zip) must be one of peft, official, comfyui; remove it for the default, peft",
        ),
        ({"lora_format": []}, "lora_format ([]) must not be empty; remove it for the default, peft"),
        (
            {"base_model_precision": "nf4-bnb"},
            (
                "base_model_precision (nf4-bnb) must be one of bf16, fp32, int8-quanto, int4-quanto, "
                "fp8-quanto, int8-torchao, fp8-torchao; use int4-quanto"
            ),
        ),
        (
            {"optimizer": "torch-sgd"},
            (
                "optimizer (torch-sgd) must be one of adamw, adamw_8bit, adafactor, prodigy, "
                "adamw_schedulefree, muon; use adamw"
            ),
        ),
        (
            {"lora_target": "everything"},
            (
                "lora_target (everything) must be one of attention, attention+ffn, all-linear, or a list "
                "of regular expressions; remove it for the default, attention"
            ),
        ),
        (
            {"lora_target": ["attn.("]},
            (
                "lora_target ([\"attn.(\"]) holds an expression that cannot be read, 'attn.(' (missing "
                "), unterminated subpattern at position 5); correct it"
            ),
        ),
        (
            {"validation_num_video_frames": 50},
            "validation_num_video_frames (50) must be 4k + 1; use 49 or 53",
        ),
        (
            {"validation_resolution": "480x850"},
            (
                "validation_resolution (480x850) must have a width and a height divisible by 16; use "
                "480x848 or 480x864"
            ),
        ),
        (
            {"lr_scheduler": "constant", "lr_warmup_steps": 10},
            (
                "lr_warmup_steps (10) has no effect with lr_scheduler constant; set lr_scheduler to "
                "constant_with_warmup"
            ),
        ),
        (
            {"flow_use_uniform_schedule": True, "flow_use_beta_schedule": True},
            "flow_use_uniform_schedule and flow_use_beta_schedule (both true) exclude each other; keep one",
        ),
        (
            {"validation_using_datasets": True},
            (
                "eval_dataset_id (null) must name a dataset when validation_using_datasets is true; set "
                "it to the id of your validation split"
            ),
        ),
        (
            {"validation_steps": 5, "validation-step-interval": 6},
            (
                "validation_step_interval is given twice, as validation_steps and as "
                "validation-step-interval; keep one"
            ),
        ),
    ],
)
def test_a_mistake_names_key_value_rule_and_remedy(tmp_path, given, message):
    assert config_message(tmp_path, given) == f"DIR/config.json: {message}"


def test_several_mistakes_are_told_together(tmp_path):
    text = config_message(tmp_path, {"lora_rnk": 8, "seed": -1}, framerate="0")
    assert text.splitlines() == [
        "3 problems:",
        "  DIR/config.json: lora_rnk (8) is not a known key; did you mean lora_rank?",
        "  command line: --framerate (0) must be above 0; remove it for the default, 30",
        "  DIR/config.json: seed (-1) must be at least 0; remove it for the default, 42",
    ]


def test_the_command_line_wins_and_null_restores_the_default(tmp_path):
    config = config_of(tmp_path, {"lora_rank": 0, "framerate": 15}, lora_rank="16", framerate="null")
    assert (config.lora.lora_rank, config.data.framerate) == (16, 30.0)


def test_values_of_the_command_line_are_typed_by_the_schema():
    overrides = {
        "learning_rate": "5e-5",
        "gradient_checkpointing": "false",
        "lora_target": '["attn\\\\.qkv"]',
        "validation_resolution": "480x832,832x480",
        "lora_format": "peft",
    }
    config = load_run_config(None, overrides)
    assert config.training.learning_rate == 5e-5
    assert config.training.gradient_checkpointing is False
    assert config.lora.lora_target == ("attn\\.qkv",)
    assert [str(size) for size in config.validation.validation_resolution] == ["480x832", "832x480"]


def test_a_file_that_is_no_object_is_told(tmp_path):
    assert (
        config_message(tmp_path, "[]")
        == "DIR/config.json: must hold one object; put the keys between { and }"
    )
