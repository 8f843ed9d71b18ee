"""The whole message of every mistake in one entry of multidatabackend.json."""

from __future__ import annotations

import pytest

from tests.config.helpers import clips, datasets_message


def written(message: str) -> str:
    """A message as it comes out: each problem after the name of the file, several on lines of their own."""
    first, *more = message.split("|")
    return "\n  DIR/data.json: ".join([first, *more]) if more else f"DIR/data.json: {first}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"id": "my clips"},
            (
                "my clips: id (my clips) may hold letters, digits, '.', '_' and '-' only, not '.' or '-' "
                "first; use my_clips"
            ),
        ),
        (
            {"id": ".."},
            "..: id (..) may hold letters, digits, '.', '_' and '-' only, not '.' or '-' first; use clips",
        ),
        ({"type": "aws"}, "clips: type (aws) must be local; use local"),
        (
            {"dataset_type": "audio"},
            (
                "clips: dataset_type (audio) must be one of video, image, conditioning, eval, "
                "text_embeds; remove it for the default, video"
            ),
        ),
        (
            {"instance_data_dir": None},
            "clips: instance_data_dir is missing; set it to the folder of the files",
        ),
        ({"resolutoin": 480}, "clips: resolutoin (480) is not a known key; did you mean resolution?"),
        ({"video": {"num_frames": 50}}, "clips: video.num_frames (50) must be 4k + 1; use 49 or 53"),
        ({"video": {"frames": 49}}, "clips: video: frames (49) is not a known key; did you mean num_frames?"),
        ({"video": 93}, "clips: video (93) must be an object in braces; remove it for the default, {}"),
        (
            {"video": {"min_frames": 9, "max_frames": 5}},
            (
                "clips: video.max_frames (5) must not be below video.min_frames (9); raise one or lower "
                "the other"
            ),
        ),
        ({"repeats": -1}, "clips: repeats (-1) must be at least 0; remove it for the default, 0"),
        (
            {"caption_strategy": "instanceprompt"},
            (
                "clips: instance_prompt (null) must be set with caption_strategy instanceprompt; write "
                "the caption of every clip there"
            ),
        ),
        (
            {"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1},
            "clips: minimum_aspect_ratio (2) must not be above maximum_aspect_ratio (1); swap them",
        ),
        (
            {"conditioning_data": ["images"]},
            "clips: conditioning_data (images) is the id of no enabled entry; the ids are clips",
        ),
        (
            {"is_i2v": False, "video": {"is_i2v": True}},
            "clips: is_i2v differs between the entry and its video object; keep one",
        ),
        ({"num_frames": 49}, "clips: num_frames (49) does not exist here; put it inside video"),
        ({"end_epoch": 3}, "clips: end_epoch (3) does not exist here; use start_step and end_step"),
        (
            {"probability": 0, "max_num_samples": 0},
            (
                "2 problems:"
                "|clips: probability (0) must be above 0; remove it for the default, 1"
                "|clips: max_num_samples (0) must be at least 1; correct it or remove it"
            ),
        ),
        (
            {"start_step": 5, "end_step": 3},
            "clips: end_step (3) must not be below start_step (5); swap them",
        ),
        (
            {"crop_style": "face"},
            "clips: crop_style (face) must be one of center, corner, random; use center",
        ),
        (
            {"crop_aspect": "closest"},
            (
                "clips: crop_aspect_buckets must list aspect ratios with crop_aspect closest; such as "
                "[0.58, 1.0, 1.73]"
            ),
        ),
        (
            {"crop_aspect_buckets": [1]},
            (
                "clips: crop_aspect_buckets has no effect with crop_aspect preserve; set crop_aspect to "
                "closest or random, or remove it"
            ),
        ),
        (
            {"crop_aspect": "random", "crop_aspect_buckets": [1, -1]},
            "clips: crop_aspect_buckets (-1) must be above 0; remove it for the default, []",
        ),
        (
            {"empty_caption": "drop"},
            "clips: empty_caption (drop) must be one of error, use; remove it for the default, error",
        ),
    ],
)
def test_a_mistake_names_entry_key_value_rule_and_remedy(tmp_path, change, message):
    assert datasets_message(tmp_path, [clips(**change)]) == written(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"caption_strategy": "csv"},
            (
                "clips: caption_table (null) must say where the captions are with caption_strategy csv; set "
                'it to {"path": "captions.csv"}'
            ),
        ),
        (
            {"caption_table": {"path": "captions.csv"}},
            (
                "clips: caption_table has no effect with caption_strategy textfile; set caption_strategy to "
                "parquet, csv or jsonl, or remove it"
            ),
        ),
        (
            {"caption_strategy": "csv", "caption_table": {"path": None}},
            "clips: caption_table.path is missing; add it",
        ),
        (
            {"caption_strategy": "csv", "caption_table": {"path": 3}},
            "clips: caption_table.path (3) must be a path, as text; correct it or remove it",
        ),
        (
            {"caption_strategy": "csv", "caption_table": "captions.csv"},
            "clips: caption_table (captions.csv) must be an object in braces; correct it or remove it",
        ),
        (
            {"caption_strategy": "csv", "caption_table": {"path": "x", "captoin_column": "text"}},
            "clips: caption_table: captoin_column (text) is not a known key; did you mean caption_column?",
        ),
        (
            {"caption_strategy": "csv", "csv": {"path": "x"}, "parquet": {"path": "y"}},
            "clips: caption_table is given twice, as csv and as parquet; keep one",
        ),
        (
            {"csv_file": "captions.csv", "csv_caption_column": "text"},
            (
                "2 problems:"
                '|clips: csv_file (captions.csv) does not exist here; set caption_table to {"path": ...} '
                "with caption_strategy csv"
                "|clips: csv_caption_column (text) does not exist here; put it as caption_column inside "
                "caption_table"
            ),
        ),
        (
            {"caption_shuffle": {"count": 0, "seed": "a", "position_start": -1, "split_on": "tab"}},
            (
                "4 problems:"
                "|clips: caption_shuffle.count (0) must be at least 1; remove it for the default, 3"
                "|clips: caption_shuffle.seed (a) must be a whole number; correct it or remove it"
                "|clips: caption_shuffle.split_on (tab) must be one of comma, space, period; remove it for "
                "the default, comma"
                "|clips: caption_shuffle.position_start (-1) must be at least 0; remove it for the default, 0"
            ),
        ),
        (
            {"caption_shuffle": {"count": True, "shuffles": 2}},
            (
                "2 problems:"
                "|clips: caption_shuffle: shuffles (2) is not a known key; docs/config.md lists all keys"
                "|clips: caption_shuffle.count (true) must be a number; correct it"
            ),
        ),
        (
            {"caption_shuffle": True},
            "clips: caption_shuffle (true) must be an object in braces; correct it or remove it",
        ),
        (
            {"caption_shuffle": {}, "caption_strategy": None},
            (
                "clips: caption_shuffle has no effect with caption_strategy null; set caption_strategy, or "
                "remove it"
            ),
        ),
    ],
)
def test_a_mistake_about_captions_names_the_key_inside_its_object(tmp_path, change, message):
    assert datasets_message(tmp_path, [clips(**change)]) == written(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"video": {"num_frames": True}},
            "clips: video.num_frames (true) must be a number; correct it",
        ),
        (
            {"video": {"clip_selection": "end", "frames_fps": 0}},
            (
                "2 problems:"
                "|clips: video.clip_selection (end) must be one of start, middle, random, all; remove it for "
                "the default, start"
                "|clips: video.frames_fps (0) must be above 0; correct it or remove it"
            ),
        ),
        (
            {"conditioning_data": "images", "video": {"clip_selection": "middle"}},
            (
                "clips: video.clip_selection (middle) must be start with conditioning_data, whose images "
                "show the start of their clips; change it, or leave conditioning_data out"
            ),
        ),
        (
            {"video": {"continuation_frames": 12}},
            "clips: video.continuation_frames (12) must be 4k + 1; use 9 or 13",
        ),
        (
            {"video": {"continuation_frames": 1}},
            "clips: video.continuation_frames (1) must be at least 5; correct it or remove it",
        ),
        (
            {"video": {"continuation_frames": 17, "num_frames": 17}},
            (
                "clips: video.continuation_frames (17) must be below video.num_frames (17); lower one or "
                "raise the other"
            ),
        ),
        (
            {"is_i2v": True, "video": {"continuation_frames": 13}},
            (
                "clips: is_i2v (true) and video.continuation_frames (13) are two tasks; say how often each "
                'is trained: "task_mix": {"i2v": 0.5, "continuation": 0.5}'
            ),
        ),
        (
            {"task_mix": {"foo": 1, "t2v": -1, "i2v": "a"}},
            (
                "3 problems:"
                "|clips: task_mix (foo) must be one of t2v, i2v, continuation; correct it or remove it"
                "|clips: task_mix.t2v (-1) must be at least 0; correct it or remove it"
                "|clips: task_mix.i2v (a) must be a number; correct it or remove it"
            ),
        ),
        ({"task_mix": 3}, "clips: task_mix (3) must be an object in braces; correct it or remove it"),
        (
            {"task_mix": {"t2v": 0}},
            "clips: task_mix must give some task a share above 0; raise one or remove it",
        ),
        (
            {"task_mix": {"continuation": 1}},
            (
                "clips: video.continuation_frames (null) must be set with continuation in task_mix; the "
                "model's own is 13"
            ),
        ),
        (
            {"task_mix": {"t2v": 1}, "video": {"continuation_frames": 13}},
            (
                "clips: video.continuation_frames (13) has no effect without continuation in task_mix; give "
                "it a share there"
            ),
        ),
        (
            {"task_mix": {"t2v": 1}, "is_i2v": True},
            "clips: is_i2v (true) has no effect without i2v in task_mix; give it a share there",
        ),
    ],
)
def test_a_mistake_about_frames_or_tasks_names_the_key_inside_its_object(tmp_path, change, message):
    assert datasets_message(tmp_path, [clips(**change)]) == written(message)
