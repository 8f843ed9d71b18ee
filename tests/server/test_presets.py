"""Presets and starting values are configs that load; choosing another one takes the first back."""

from __future__ import annotations

import json

import pytest

from longcat_tune.config.load import load_run_config
from longcat_tune.server.presets import (
    GOVERNED,
    PRESETS,
    STARTS,
    fitting_presets,
    preset_for,
    with_flavour,
    with_preset,
)


@pytest.mark.parametrize("name", [*PRESETS])
@pytest.mark.parametrize("flavour", [*STARTS])
def test_a_preset_is_a_valid_config(tmp_path, caplog, name, flavour) -> None:
    values = with_preset(with_flavour({}, flavour), name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config = load_run_config(path, {}).flat()
    assert {key: config[key] for key in PRESETS[name].values if key != "validation_resolution"} == {
        key: value for key, value in PRESETS[name].values.items() if key != "validation_resolution"
    }
    assert config["memory_plan"] == "auto"
    assert not caplog.records


def test_there_is_one_for_each_size_of_card() -> None:
    assert [preset.card_gb for preset in PRESETS.values()] == [8, 12, 16, 24, 48, 80]


def test_another_preset_takes_the_first_one_back_and_leaves_the_rest() -> None:
    mine = with_flavour({"seed": 7, "lora_dropout": 0.1}, "final")
    assert with_preset(with_preset(mine, "8"), "24") == with_preset(mine, "24")
    assert with_preset(with_preset(mine, "8"), "") == mine
    assert with_preset(mine, "8")["validation_resolution"] == "640x384"


def test_a_preset_is_recognised_until_one_of_its_keys_is_changed() -> None:
    values = with_preset(with_flavour({}, "final"), "12")
    assert fitting_presets(values) == ["12"]
    assert fitting_presets({**values, "seed": 7}) == ["12"]
    assert fitting_presets({**values, "lora_rank": 5}) == []
    assert fitting_presets(with_flavour({}, "final")) == []


def test_another_flavour_changes_what_was_started_from_and_keeps_what_was_chosen() -> None:
    mine = with_flavour({}, "final") | {"max_train_steps": 77, "seed": 7}
    tiny = with_flavour(mine, "tiny")
    assert (tiny["max_train_steps"], tiny["seed"], tiny["resolution"]) == (77, 7, 64)
    back = with_flavour(tiny, "final")
    assert (back["max_train_steps"], back["seed"]) == (77, 7)
    assert "resolution" not in back
    assert back["validation_resolution"] == STARTS["final"]["validation_resolution"]


def test_the_miniature_has_no_preset() -> None:
    tiny = with_flavour(with_preset(with_flavour({}, "final"), "8"), "tiny")
    assert {key: tiny[key] for key in GOVERNED if key in tiny} == {
        key: value for key, value in STARTS["tiny"].items() if key in GOVERNED
    }


@pytest.mark.parametrize(
    ("mib", "name"),
    [
        (None, ""),
        (6144, ""),
        (8188, "8"),
        (11264, "8"),
        (24564, "24"),
        (40960, "24"),
        (81559, "80"),
        (143771, "80"),
    ],
)
def test_a_card_has_the_largest_preset_that_fits(mib, name) -> None:
    assert preset_for(mib) == name
