"""The form of an entry: every key once, what it writes is what changed, and what is not ours stays."""

from __future__ import annotations

import pytest

from longcat_tune.server.datasets_form import GROUPS, entry_of, fields_of, groups_for, keys, texts_of
from longcat_tune.server.texts import catalogue

PLAIN = {"id": "clips", "instance_data_dir": "../clips"}


def all_fields():
    return [field for group in GROUPS for field in fields_of(group)]


def test_every_key_of_an_entry_is_on_the_form_once():
    assert sorted(field.key for field in all_fields()) == sorted(keys())


def test_the_help_is_the_schema_s_in_english_and_there_is_one_in_chinese():
    for field in all_fields():
        told = catalogue()[f"datasets.help_{field.key}"]
        assert told["en"].format() == field.help, f"{field.key}: write the schema's words into the texts"


def test_a_form_that_nobody_touched_changes_nothing():
    entry = PLAIN | {
        "caption_strategy": None,
        "resolution": 256,
        "crop": False,
        "probability": 0.5,
        "crop_aspect": "closest",
        "crop_aspect_buckets": [0.58, 1],
        "conditioning_data": ["1", "b"],
        "task_mix": {"t2v": 0.5, "i2v": 0.5},
        "caption_table": {"path": "captions.csv", "caption_column": "caption"},
        "video": {"num_frames": 37},
        "hash_filenames": True,
    }
    assert entry_of(texts_of(entry), entry) == entry


@pytest.mark.parametrize(
    ("texts", "changes"),
    [
        ({"repeats": "2"}, {"repeats": 2}),
        ({"repeats": "0"}, {}),
        ({"probability": "1"}, {}),
        ({"probability": "0.25"}, {"probability": 0.25}),
        ({"repeats": "many"}, {"repeats": "many"}),
        ({"dataset_type": "video"}, {}),
        ({"dataset_type": "image"}, {"dataset_type": "image"}),
        ({"is_i2v": "true"}, {"is_i2v": True}),
        ({"is_i2v": "false"}, {}),
        ({"crop": "false"}, {"crop": False}),
        ({"crop": "true"}, {}),
        # The run's own may be another than the default, so a value that is written says something.
        ({"resolution": "480"}, {"resolution": 480}),
        ({"caption_strategy": "null"}, {"caption_strategy": None}),
        ({"caption_strategy": "textfile"}, {"caption_strategy": "textfile"}),
        ({"crop_aspect_buckets": "0.5, 1,"}, {"crop_aspect_buckets": [0.5, 1]}),
        ({"conditioning_data": "a, 7"}, {"conditioning_data": ["a", "7"]}),
        ({"video.num_frames": "37"}, {"video": {"num_frames": 37}}),
        ({"video.num_frames": "93", "video.min_frames": ""}, {}),
        ({"task_mix.i2v": "0.5"}, {"task_mix": {"i2v": 0.5}}),
        ({"caption_shuffle.enable": "true"}, {"caption_shuffle": {"enable": True}}),
        ({"caption_shuffle.count": "3"}, {"caption_shuffle": {"count": 3}}),
        ({"instance_prompt": "  a dog  "}, {"instance_prompt": "a dog"}),
    ],
)
def test_only_changed_keys_are_written(texts, changes):
    assert entry_of(texts, PLAIN) == PLAIN | changes


def test_what_is_emptied_is_taken_out():
    entry = PLAIN | {"repeats": 3, "video": {"num_frames": 37}, "task_mix": {"t2v": 1}, "cache_dir_vae": "x"}
    texts = texts_of(entry) | {"repeats": "", "video.num_frames": "", "task_mix.t2v": "", "cache_dir_vae": ""}
    assert entry_of(texts, entry) == PLAIN


def test_the_entry_that_was_read_is_not_changed():
    entry = PLAIN | {"video": {"num_frames": 37}}
    entry_of({"video.num_frames": "41"}, entry)
    assert entry["video"] == {"num_frames": 37}


def test_image_to_video_inside_video_moves_to_the_entry():
    entry = PLAIN | {"video": {"is_i2v": True, "num_frames": 37}}
    texts = texts_of(entry)
    assert texts["is_i2v"] == "true"
    assert entry_of(texts, entry) == PLAIN | {"video": {"num_frames": 37}, "is_i2v": True}


def test_an_empty_shuffle_is_shown_as_on():
    assert texts_of(PLAIN | {"caption_shuffle": {}})["caption_shuffle.enable"] == "true"


def test_an_object_that_is_none_is_left_for_the_loader_to_refuse():
    entry = PLAIN | {"video": 5}
    assert entry_of(texts_of(entry), entry) == entry


def test_start_images_and_text_features_have_few_keys():
    assert groups_for("conditioning") == ("basics",)
    assert groups_for("text_embeds") == ("basics", "caches")
    assert groups_for("video") == groups_for(None) == tuple(GROUPS)
