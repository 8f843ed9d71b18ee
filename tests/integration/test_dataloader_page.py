"""docs/dataloader.md is right: its tables are fresh, its examples load, its figures are those of the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.load import load_datasets, load_run_config
from longcat_tune.data.buckets import bucket_size
from longcat_tune.data.captions import Captions
from longcat_tune.data.epochs import DatasetBatches, EpochPlan
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.data.windows import encoded_frames, resampled_frames, window_starts
from longcat_tune.types import ClipRecord, Stamp

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "dataloader.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(REPOSITORY / "scripts" / "make_config_docs.py"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose header begins with this cell, without the header."""
    _, _, after = PAGE.partition(f"\n| {heading} |")
    table, _, _ = after.partition("\n\n")
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def load(folder: Path, data: str, config: str = "{}") -> list[DatasetEntry]:
    (folder / "data.json").write_text(data, encoding="utf-8")
    (folder / "config.json").write_text(config, encoding="utf-8")
    overrides = {"data_backend_config": "data.json"}
    return list(load_datasets(load_run_config(folder / "config.json", overrides), config_dir=folder))


def entry(**keys) -> DatasetEntry:
    return DatasetEntry(id="clips", instance_data_dir=Path("clips"), **keys)


def test_the_tables_of_keys_are_fresh():
    assert SCRIPT["filled"](PAGE) == PAGE, "run: python scripts/make_config_docs.py"


def test_every_key_stands_in_one_table():
    listed = [key for mark in SCRIPT["MARKED"].findall(PAGE) for key in mark[1].split()]
    assert sorted(listed) == sorted(key for key, _ in SCRIPT["entry_fields"]())


def test_the_page_stays_readable():
    assert len(PAGE.splitlines()) < 350


def test_every_example_loads(tmp_path, caplog):
    examples = blocks("json")
    data = [block for block in examples if block.startswith("[")]
    [config] = [block for block in examples if block.startswith("{")]
    assert len(data) == 6
    for block in data:
        assert load(tmp_path, block, config)
    assert caplog.messages == []


def test_the_example_tables_hold_what_the_page_says(tmp_path):
    [csv], [jsonl] = blocks("csv"), blocks("text")
    (tmp_path / "captions.csv").write_text(csv, encoding="utf-8")
    (tmp_path / "captions.jsonl").write_text(jsonl, encoding="utf-8")
    example = next(block for block in blocks("json") if '"csv"' in block)
    found = {}
    for data in (example, example.replace("csv", "jsonl").replace(', "fallback_caption_column": "tags"', "")):
        [one] = load(tmp_path, data)
        captions = Captions.of_dataset(one, seed=0)
        found[one.caption_strategy] = [
            captions.of(one.instance_data_dir / name, name, kind="video")
            for name in ("dance/01.mp4", "surf.mov")
        ]
    assert found == {
        "csv": [("A woman dances, arms raised.",), ("surf, wave, sunset",)],
        "jsonl": [("A woman dances.", "Dancing in a studio."), ("A surfer rides a wave at sunset.",)],
    }


def test_the_example_of_variants_is_one(tmp_path):
    shuffle = {"count": 5, "position_start": 1}
    caption, variant = re.findall(r"`(sks dancer, [^`]*)`", PAGE)
    one = entry(caption_strategy="instanceprompt", instance_prompt=caption, caption_shuffle=shuffle)
    assert variant in Captions.of_dataset(one, seed=0).of(Path("a.mp4"), "a.mp4", kind="video")


def test_the_lengths_are_those_of_the_code():
    strategies = [
        {},
        {"allow_short": True},
        {"video": {"bucket_strategy": "resolution_frames"}},
        {"video": {"bucket_strategy": "resolution_frames", "frame_interval": 8}},
    ]

    def encoded(available: int, keys: dict) -> str:
        seconds, stamp = available / 30, Stamp(1, 1)
        record = ClipRecord("clips", Path("a.mp4"), "a.mp4", "video", (), 832, 480, available, seconds, stamp)
        try:
            return str(encoded_frames(record, entry(**keys), available, framerate=30))
        except UnusableFileError:
            return "refused"

    lengths = rows("frames")
    assert len(lengths) == 6
    for frames, *cells in lengths:
        assert cells == [encoded(int(frames), keys) for keys in strategies]


@pytest.mark.parametrize(("selection", "starts"), [("start", [0]), ("middle", [103]), ("all", [0, 93, 186])])
def test_the_windows_are_those_of_the_code(selection, starts):
    video = entry(video={"clip_selection": selection}).video
    assert list(window_starts(video, available=300, num_frames=93, name="a", seed=0)) == starts
    told = dict(rows("`clip_selection`"))[f"`{selection}`"]
    assert [f"{start} to {start + 92}" for start in starts] == re.findall(r"\d+ to \d+", told)


def test_resampling_counts_as_the_page_does():
    assert (resampled_frames(7, 15), 300 - 186 - 93, 300 - 93 + 1) == (105, 21, 208)


def test_the_sizes_are_those_of_the_code():
    def size(clip: str, **keys) -> str:
        width, height = (1000, 1000) if clip == "square" else map(int, clip.split("x"))
        return "{}x{}".format(*bucket_size(width, height, resolution=480, **keys))

    table = rows("clip")
    assert len(table) == 6
    for clips, *cells in table:
        for clip in clips.split(", "):
            assert cells == [
                size(clip, resolution_type="pixel"),
                size(clip, resolution_type="pixel_area"),
                size(clip, resolution_type="pixel", table="official_480p"),
                size(clip, resolution_type="pixel", table="official_720p"),
            ]


def test_the_epochs_are_those_of_the_code():
    places = DatasetBatches(51, probability=0.25, start_step=101)
    plan = EpochPlan([DatasetBatches(41), places], accumulation=2)
    assert (places.per_epoch, [plan.locate(epoch).steps for epoch in range(6)]) == (
        13,
        [21, 21, 21, 21, 16, 27],
    )
