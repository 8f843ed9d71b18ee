"""multidatabackend.json: inherited defaults, found folders, entries that fit together, and all messages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from longcat_tune.config.datasets import CaptionTable, DatasetEntry
from longcat_tune.config.foreign import DATASET_KEYS, NESTED_KEYS
from longcat_tune.config.load import load_datasets
from longcat_tune.config.run import RunConfig
from longcat_tune.config.schema import section_of
from longcat_tune.errors import ConfigError
from tests.config.helpers import clips, datasets_message, datasets_of


def test_an_entry_inherits_from_the_run(tmp_path):
    run = {
        "resolution": "512",
        "resolution_type": "pixel_area",
        "caption_strategy": "filename",
        "output_dir": "out",
    }
    [entry] = datasets_of(tmp_path, [clips()], **run)
    assert (entry.resolution, entry.resolution_type, entry.caption_strategy) == (
        512.0,
        "pixel_area",
        "filename",
    )
    assert entry.cache_dir_vae == Path("out/cache/vae/clips")
    assert (entry.video.num_frames, entry.video.num_frames_given) == (93, False)


def test_what_an_entry_sets_wins(tmp_path):
    entry = clips(resolution=720, caption_strategy=None, cache_dir_vae="vae", video={"num_frames": 17})
    [entry] = datasets_of(tmp_path, [entry], resolution="512")
    assert (entry.resolution, entry.caption_strategy, entry.cache_dir_vae) == (720.0, None, Path("vae"))
    assert (entry.video.num_frames, entry.video.num_frames_given) == (17, True)


def test_an_entry_alone_has_the_defaults_of_the_run():
    entry = DatasetEntry(id="clips", instance_data_dir=Path("clips"))
    data = RunConfig().data
    assert (entry.resolution, entry.resolution_type) == (data.resolution, data.resolution_type)
    assert entry.caption_strategy == data.caption_strategy


def test_conditioning_entries_have_no_captions(tmp_path):
    images = {"id": "images", "dataset_type": "conditioning", "instance_data_dir": "/data/images"}
    pair = datasets_of(tmp_path, [clips(conditioning_data="images"), images])
    assert [entry.caption_strategy for entry in pair] == ["textfile", None]
    assert pair[0].conditioning_data == ("images",)


@pytest.mark.parametrize("entry", [clips(is_i2v=True), clips(video={"is_i2v": True, "min_frames": 9})])
def test_image_to_video_may_stand_in_either_place(tmp_path, entry):
    assert datasets_of(tmp_path, [entry])[0].is_i2v is True


def test_folders_are_found_beside_the_data_file_or_in_the_working_folder(tmp_path):
    (tmp_path / "here").mkdir()
    entries = [clips(id="a", instance_data_dir="here"), clips(id="b", instance_data_dir="elsewhere")]
    assert [entry.instance_data_dir for entry in datasets_of(tmp_path, entries)] == [
        tmp_path / "here",
        Path("elsewhere"),
    ]


def test_the_data_file_may_be_relative_to_the_working_folder(tmp_path, monkeypatch):
    datasets_of(tmp_path, [clips()])
    monkeypatch.chdir(tmp_path)
    config = RunConfig.model_validate({"data": {"data_backend_config": "data.json"}})
    assert load_datasets(config, config_dir=Path("config"))[0].id == "clips"


def test_disabled_entries_are_left_out_unread(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    entries = datasets_of(tmp_path, [clips(), {"id": "old", "disable": True, "type": "aws"}])
    assert [entry.id for entry in entries] == ["clips"]
    assert caplog.messages == [f"{tmp_path}/data.json: dataset old is disabled"]


def test_keys_without_meaning_and_unused_images_are_warned_of(tmp_path, caplog):
    images = {"id": "images", "dataset_type": "conditioning", "instance_data_dir": "/i", "vae_batch_size": 4}
    datasets_of(tmp_path, [clips(metadata_backend="discovery", start_epoch=1), images])
    assert [message.replace(str(tmp_path), "DIR") for message in caplog.messages] == [
        "DIR/data.json: images has no effect; no conditioning_data names it",
        (
            "DIR/data.json: SimpleTuner keys that have no meaning here had no effect: metadata_backend, "
            "start_epoch, vae_batch_size"
        ),
    ]


def test_foreign_keys_and_ours_do_not_overlap():
    assert DATASET_KEYS.names() & DatasetEntry.model_fields.keys() == set()
    for key, foreign in NESTED_KEYS.items():
        assert foreign.names() & section_of(DatasetEntry.model_fields[key]).model_fields.keys() == set()


def test_an_entry_without_id_is_counted(tmp_path):
    assert (
        datasets_message(tmp_path, [{"instance_data_dir": "/x"}])
        == "DIR/data.json: entry 1: id is missing; add it"
    )


def test_two_entries_with_one_id_are_an_error(tmp_path):
    assert datasets_message(tmp_path, [clips(), clips()]) == (
        "DIR/data.json: id (clips) is used by 2 entries; give each its own"
    )


def test_conditioning_data_must_be_of_its_type(tmp_path):
    entries = [clips(conditioning_data=["b"]), clips(id="b")]
    assert datasets_message(tmp_path, entries) == (
        "DIR/data.json: clips: conditioning_data (b) must name an entry of dataset_type conditioning, "
        "not video; set dataset_type there"
    )


def test_the_evaluation_dataset_must_exist(tmp_path):
    assert datasets_message(tmp_path, [clips()], eval_dataset_id="val") == (
        "eval_dataset_id (val) is the id of no enabled entry; the ids are clips"
    )


def test_one_folder_of_text_features_is_enough(tmp_path):
    text = {"dataset_type": "text_embeds", "cache_dir": "/cache/text", "default": True}
    [_, entry] = datasets_of(tmp_path, [clips(), {"id": "a", **text}])
    assert entry.cache_dir == Path("/cache/text")
    assert datasets_message(tmp_path, [clips(), {"id": "a", **text}, {"id": "b", **text}]) == (
        "DIR/data.json: dataset_type (text_embeds) may be given once; remove the other entries"
    )


def test_a_table_is_found_in_the_clips_folder_beside_the_data_file_or_in_the_working_folder(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "first.csv").touch()
    (tmp_path / "first.csv").touch()
    (tmp_path / "second.csv").touch()
    for name, found in (
        ("first.csv", tmp_path / "here" / "first.csv"),
        ("second.csv", tmp_path / "second.csv"),
        ("third.csv", Path("third.csv")),
        (str(tmp_path / "second.csv"), tmp_path / "second.csv"),
    ):
        entry = clips(instance_data_dir="here", caption_strategy="csv", caption_table={"path": name})
        assert datasets_of(tmp_path, [entry])[0].caption_table.path == found


def test_a_table_may_stand_under_the_name_of_its_format(tmp_path, caplog):
    table = {"path": "/t.parquet", "caption-column": "text", "width_column": "w", "fps_column": "fps"}
    [entry] = datasets_of(tmp_path, [clips(caption_strategy="parquet", parquet=table)])
    assert entry.caption_table == CaptionTable(path=Path("/t.parquet"), caption_column="text")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "SimpleTuner keys that have no meaning here had no effect: fps_column, width_column"
    ]


def test_entries_without_captions_need_no_table(tmp_path):
    table = clips(caption_table={"path": "captions.csv"})
    images = {"id": "images", "dataset_type": "conditioning", "instance_data_dir": "/data/images"}
    text = {"id": "text", "dataset_type": "text_embeds", "cache_dir": "/cache/text"}
    entries = datasets_of(tmp_path, [table, images, text], caption_strategy="csv")
    assert [entry.caption_strategy for entry in entries] == ["csv", None, None]


def test_keys_of_another_caption_strategy_are_warned_of(tmp_path, caplog):
    entry = clips(instance_prompt="a cat", disable_multiline_split=True, caption_strategy="filename")
    datasets_of(tmp_path, [entry])
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "clips: instance_prompt has no effect with caption_strategy filename; remove it",
        "clips: disable_multiline_split has no effect with caption_strategy filename; remove it",
    ]


EVAL = "with dataset_type eval, which is not trained on"
HELD_OUT = "on the dataset of eval_dataset_id, which is not trained on"
UNTRAINED = {"repeats": 2, "probability": 0.5, "start_step": 3, "end_step": 9}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            {"dataset_type": "conditioning", "crop_style": "random", "resolution": 720},
            "resolution, crop_style have no effect with dataset_type conditioning; remove them",
        ),
        (
            {"dataset_type": "conditioning", "video": {"num_frames": 9}},
            "video has no effect with dataset_type conditioning; remove it",
        ),
        (
            {"dataset_type": "eval", **UNTRAINED, "max_num_samples": 3},
            f"{', '.join(UNTRAINED)} have no effect {EVAL}; remove them",
        ),
        (
            {"id": "held-out", **UNTRAINED},
            f"{', '.join(UNTRAINED)} have no effect {HELD_OUT}; remove them",
        ),
        (
            {"dataset_type": "text_embeds", "cache_dir": "/t", "repeats": 2},
            "repeats has no effect with dataset_type text_embeds; remove it",
        ),
        (
            {"cache_dir": "/t"},
            "cache_dir has no effect with dataset_type video, whose folder is cache_dir_vae; remove it",
        ),
    ],
)
def test_keys_that_an_entry_does_not_read_are_warned_of(tmp_path, caplog, entry, told):
    others = [clips(id="clips", conditioning_data="one"), {"id": "held-out", "instance_data_dir": "/h"}]
    entry = {"id": "one", "instance_data_dir": "/one", **entry}
    if entry.get("dataset_type") != "conditioning":
        others[0].pop("conditioning_data")
    kept = [other for other in others if other["id"] != entry["id"]]
    datasets_of(tmp_path, [*kept, entry], eval_dataset_id="held-out")
    assert [message.partition(": ")[2] for message in caplog.messages] == [f"{entry['id']}: {told}"]


def test_keys_at_their_defaults_are_no_news(tmp_path, caplog):
    at_default = {"repeats": 0, "resolution": 480, "caption_strategy": "textfile", "crop_style": "center"}
    still = {"id": "stills", "dataset_type": "conditioning", "instance_data_dir": "/s", **at_default}
    datasets_of(tmp_path, [clips(conditioning_data="stills"), still], resolution=480)
    assert caplog.messages == []


def test_a_file_without_entries_is_told(tmp_path):
    assert datasets_message(tmp_path, "[]").startswith("DIR/data.json: lists no datasets; add one, such as {")


def test_a_file_that_is_no_list_is_told(tmp_path):
    assert datasets_message(tmp_path, "{}") == (
        "DIR/data.json: must hold a list of datasets; put them between [ and ]"
    )


def test_a_missing_data_file_names_both_places(tmp_path):
    config = RunConfig.model_validate({"data": {"data_backend_config": "nowhere.json"}})
    with pytest.raises(ConfigError) as caught:
        load_datasets(config, config_dir=Path("config"))
    assert str(caught.value) == (
        "data_backend_config (nowhere.json) is not there (tried config/nowhere.json and nowhere.json); "
        "correct the path"
    )


def test_no_data_file_at_all_says_what_to_add():
    with pytest.raises(ConfigError) as caught:
        load_datasets(RunConfig(), config_dir=Path())
    assert str(caught.value) == (
        "data_backend_config (null) must name the file that lists the datasets; "
        'add "data_backend_config": "multidatabackend.json" to the config'
    )
