"""Keys of the training that contradict each other are refused, with the one to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.helpers import config_message, config_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": "prodigy"},
            (
                "learning_rate (0.0001) must be at least 0.1 with optimizer prodigy, which finds the rate "
                "itself and multiplies it by this; set it to 1"
            ),
        ),
        (
            {"optimizer": "prodigy", "learning_rate": 1, "lora_plus_ratio": 16},
            (
                "lora_plus_ratio (16) needs two learning rates, but optimizer prodigy finds one for all "
                "weights; remove it or choose adamw"
            ),
        ),
        (
            {"optimizer": "adamw_schedulefree", "lr_scheduler": "cosine"},
            (
                "lr_scheduler (cosine) must be constant or constant_with_warmup with optimizer "
                "adamw_schedulefree, which averages the weights in place of a falling rate; change one of "
                "them"
            ),
        ),
        (
            {"optimizer": "adamw_schedulefree", "use_ema": True},
            (
                "use_ema (true) must be false with optimizer adamw_schedulefree, which saves and renders an "
                "average of the weights already; remove it or choose adamw"
            ),
        ),
        (
            {"optimizer": "adamw_schedulefree", "adam_beta1": 0},
            "adam_beta1 (0) must be above 0 with optimizer adamw_schedulefree; remove it for 0.9",
        ),
        (
            {"lr_scheduler": "rex", "lr_end": 1e-3},
            "lr_end (0.001) must be at most learning_rate (0.0001); lower it",
        ),
        (
            {"ema_validation": "comparison"},
            (
                "ema_validation (comparison) has no average to render with, as use_ema is false; set use_ema "
                "to true or remove it"
            ),
        ),
        (
            {"flow_min_sigma": 0.9, "flow_max_sigma": 0.4},
            (
                "flow_min_sigma (0.9) must be below flow_max_sigma (0.4); lower it, or remove both to train "
                "all noise levels"
            ),
        ),
        ({"loss_type": "smooth_l1"}, "loss_type (smooth_l1) must be one of l2, huber; use huber"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, given: dict, message: str) -> None:
    assert config_message(tmp_path, given) == f"DIR/config.json: {message}"


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "prodigy", "learning_rate": 1, "lr_scheduler": "cosine"},
        {"optimizer": "adamw_schedulefree", "lr_warmup_steps": 10},
        {"lr_scheduler": "polynomial", "lr_power": 2, "lr_end": 0},
        {"lr_end": 1e-3},
        {"use_ema": True, "ema_decay": 0.9, "ema_validation": "ema_only"},
        {"optimizer": "muon", "lora_plus_ratio": 4},
    ],
)
def test_what_goes_together_is_accepted(tmp_path: Path, given: dict) -> None:
    config = config_of(tmp_path, given)
    assert {key: config.flat()[key] for key in given} == given
