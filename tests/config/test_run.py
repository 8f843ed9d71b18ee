"""The sections together: no key twice, defaults as the surface promises, and a flat view that reads back."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from longcat_tune.config.foreign import CONFIG_KEYS
from longcat_tune.config.run import RunConfig, changes_meaning, keys, require_training_length, sections
from longcat_tune.errors import ConfigError
from tests.config.helpers import config_of

PROMISED = {
    "model_flavour": "final",
    "base_model_precision": "bf16",
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_target": "attention",
    "lora_format": ["peft"],
    "resolution": 480.0,
    "framerate": 30.0,
    "caption_dropout_probability": 0.1,
    "max_train_steps": None,
    "learning_rate": 1e-4,
    "lr_scheduler": "constant_with_warmup",
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "seed": 42,
    "flow_schedule_shift": 12.0,
    "checkpoint_step_interval": 500,
    "resume_from_checkpoint": "latest",
    "validation_resolution": ["480x832"],
    "validation_num_video_frames": 93,
    "validation_num_inference_steps": 40,
    "validation_guidance": 4.0,
    "validation_on_startup": True,
    "output_dir": "longcat-tune-results",
}


def test_each_key_is_in_one_section():
    counts = Counter(key for model in sections().values() for key in model.model_fields)
    assert [key for key, count in counts.items() if count > 1] == []
    assert set(RunConfig().flat()) == set(keys())


def test_defaults_are_those_of_the_surface():
    flat = RunConfig().flat()
    assert {key: flat[key] for key in PROMISED} == PROMISED


def test_every_key_says_what_it_means():
    assert [key for key, (_, field) in keys().items() if not (field.description or "").endswith(".")] == []


def test_aliases_lead_to_keys():
    assert set(CONFIG_KEYS.aliases.values()) <= keys().keys()


def test_the_resolved_config_reads_back_the_same(tmp_path):
    given = {
        "lora_rank": 4,
        "lora_alpha": 2,
        "lora_target": ["attn\\.qkv$"],
        "validation_resolution": "480x832,832x480",
        "resume_from_checkpoint": False,
        "output_dir": "out",
    }
    config = config_of(tmp_path, given)
    assert config.training.resume_from_checkpoint is None
    assert config_of(tmp_path, config.flat()) == config


def test_training_needs_a_length():
    with pytest.raises(ConfigError) as caught:
        require_training_length(RunConfig())
    assert str(caught.value) == (
        "max_train_steps and num_train_epochs (both null): one must be given to train; "
        'add "max_train_steps": 1000 to the config'
    )


def test_steps_win_over_epochs_with_a_note(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    require_training_length(config_of(tmp_path, {"max_train_steps": 20, "num_train_epochs": 3}))
    assert caplog.messages == ["max_train_steps (20) wins over num_train_epochs (3)"]


@pytest.mark.parametrize(
    ("key", "then", "now", "changes"),
    [
        ("learning_rate", 1e-4, 1e-5, True),
        ("gradient_checkpointing", True, False, False),
        ("validation_guidance", 4.0, 1.0, False),
        ("epoch_order", "a", "b", False),
        ("attention_implementation", "sdpa", "flash", False),
        ("attention_implementation", "sdpa", "block_sparse", True),
        ("attention_implementation", "block_sparse", "auto", True),
    ],
)
def test_what_decides_what_is_learned_is_known(key, then, now, changes):
    assert changes_meaning(key, then, now) is changes
