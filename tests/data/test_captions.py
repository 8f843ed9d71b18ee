"""Every caption strategy, variants of tag captions, and the whole message where a caption is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from

from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.data.captions import Captions
from longcat_tune.data.refusals import UnusableFileError
from longcat_tune.types import Notice

REMEDY = (
    'write its caption there, set empty_caption to "use" for the empty prompt, or caption_strategy to '
    '"filename", "instanceprompt" or null'
)


def captions(seed: int = 0, **keys) -> Captions:
    entry = DatasetEntry(id="clips", **{"instance_data_dir": Path("clips"), **keys})
    return Captions.of_dataset(entry, seed=seed)


def found(path: Path, **keys) -> tuple[str, ...]:
    return captions(**keys).of(path, path.name, kind="sequence" if path.is_dir() else "video")


def message_of(path: Path, **keys) -> str:
    with pytest.raises(UnusableFileError) as caught:
        found(path, **keys)
    return str(caught.value).replace(f"{path.parent}/", "")


def tags(caption: str, seed: int = 0, name: str = "a.mp4", **shuffle) -> list[str]:
    """The caption and its variants."""
    of = captions(
        seed, caption_strategy="instanceprompt", instance_prompt=caption, caption_shuffle=shuffle
    ).of
    return list(of(Path(name), name, kind="video"))


def test_each_line_of_the_text_file_is_a_caption(tmp_path):
    (tmp_path / "a b.v2.txt").write_bytes(
        "\ufeff  A red ball. \r\n\r\n  \nEin roter Ball: größer.\rUn ballon\u2028rouge.".encode()
    )
    assert found(tmp_path / "a b.v2.mp4") == (
        "A red ball.",
        "Ein roter Ball: größer.",
        "Un ballon\u2028rouge.",
    )


def test_text_file_can_be_one_caption(tmp_path):
    (tmp_path / "clip.txt").write_bytes(b"A red ball.\r\nIt bounces.\n")
    assert found(tmp_path / "clip.mp4", disable_multiline_split=True) == ("A red ball.\nIt bounces.",)


def test_a_folder_of_pictures_has_its_caption_beside_it_under_its_full_name(tmp_path):
    (tmp_path / "walk.v2").mkdir()
    (tmp_path / "walk.txt").write_text("Of walk.mp4.")
    (tmp_path / "walk.v2.txt").write_text("Of the folder.")
    assert found(tmp_path / "walk.v2") == ("Of the folder.",)
    assert found(tmp_path / "walk.mp4") == ("Of walk.mp4.",)
    assert found(tmp_path / "walk.v2", caption_strategy="filename") == ("walk.v2",)


def test_name_instance_prompt_and_none():
    clip = Path("clips/a_red__ball on_grass.mp4")
    assert found(clip, caption_strategy="filename") == ("a red ball on grass",)
    assert found(clip, caption_strategy="instanceprompt", instance_prompt="sks cat") == ("sks cat",)
    assert found(clip, caption_strategy=None) == ("",)


def test_missing_and_empty_captions_are_refused(tmp_path):
    clip = tmp_path / "clip.mp4"
    assert message_of(clip) == f"clip.mp4 has no caption: clip.txt does not exist; {REMEDY}"
    (tmp_path / "clip.txt").write_text(" \n\n")
    assert message_of(clip) == f"clip.mp4 has no caption: clip.txt is empty; {REMEDY}"
    assert message_of(tmp_path / "__.mp4", caption_strategy="filename") == (
        '__.mp4 has no words in its name; rename it to what it shows, or set empty_caption to "use" for the '
        "empty prompt"
    )


@pytest.mark.parametrize("empty_caption", ["error", "use"])
def test_what_cannot_be_read_is_refused_in_any_case(tmp_path, empty_caption):
    clip, keys = tmp_path / "clip.mp4", {"empty_caption": empty_caption}
    (tmp_path / "clip.txt").write_bytes("größer".encode("latin-1"))
    assert message_of(clip, **keys) == (
        "clip.mp4 has a caption that is not UTF-8: clip.txt; save the text as UTF-8"
    )
    (tmp_path / "clip.txt").unlink()
    (tmp_path / "clip.txt").mkdir()
    assert message_of(clip, **keys) == (
        "clip.mp4 has a caption that cannot be read: clip.txt (Is a directory); make it a readable text file"
    )


def test_missing_captions_that_may_be_empty_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("A red ball.")
    (tmp_path / "b.txt").touch()
    several = captions(empty_caption="use")
    names = [f"{letter}.mp4" for letter in "edcba"]
    assert [several.of(tmp_path / name, name, kind="video") for name in names] == [
        *[("",)] * 4,
        ("A red ball.",),
    ]
    several.of(tmp_path / "b.mp4", "b.mp4", kind="video")
    assert several.notices(names) == (
        Notice(
            "clips",
            "files without a caption, which use the empty prompt: 4 (b.mp4, c.mp4, d.mp4, 1 more)",
            'write their captions, or set empty_caption to "error" to refuse them',
        ),
    )


def test_a_caption_of_any_length_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("longcat_tune.data.captions.READ_AT_ONCE", 8)
    for length in (7, 8, 9, 16, 100):
        (tmp_path / "a.txt").write_text("é" + "x" * (length - 2))
        assert found(tmp_path / "a.mp4") == ("é" + "x" * (length - 2),)


def test_where_all_is_in_order_nothing_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("A red ball.")
    several = captions(empty_caption="use")
    several.of(tmp_path / "a.mp4", "a.mp4", kind="video")
    assert several.notices(["a.mp4"]) == ()


def test_variants_are_other_orders_of_the_same_tags():
    caption = "sks, red ball,  grass , dog, sun"
    every = tags(caption, position_start=1, count=4)
    assert every[0] == caption
    assert len(set(every)) == 5
    for variant in every[1:]:
        assert variant.startswith("sks, ")
        assert sorted(variant.split(", ")) == ["dog", "grass", "red ball", "sks", "sun"]
        assert variant != "sks, red ball, grass, dog, sun"


@given(
    words=lists(sampled_from("abcde"), min_size=1, max_size=6),
    count=integers(1, 8),
    first=integers(0, 3),
    seed=integers(0, 99),
)
def test_variants_are_distinct_permutations_as_many_as_there_are(words, count, first, seed):
    head, movable = words[:first], words[first:]
    orders = {(*head, *order) for order in permutations(movable)} - {tuple(words)}
    original, *variants = [
        tuple(one.split(" "))
        for one in tags(" ".join(words), seed, split_on="space", count=count, position_start=first)
    ]
    assert original == tuple(words)
    assert len(variants) == len(set(variants)) == min(count, len(orders))
    assert set(variants) <= orders


def test_variants_depend_on_seed_clip_and_caption_alone():
    caption = ", ".join("abcdefgh")
    assert tags(caption) == tags(caption)
    assert tags(caption, seed=1)[1:] != tags(caption)[1:]
    assert tags(caption, name="b.mp4")[1:] != tags(caption)[1:]
    assert tags(caption, count=1) == tags(caption)[:2]


def test_a_seed_of_their_own_wins_over_the_runs():
    shuffle = {"caption_shuffle": {"seed": 7}, "caption_strategy": "filename"}
    clip = Path("a,b,c,d,e,f,g,h.mp4")
    one, other = (captions(seed, **shuffle).of(clip, clip.name, kind="video") for seed in (1, 2))
    of_run = captions(7, **{**shuffle, "caption_shuffle": {}})
    assert one == other == of_run.of(clip, clip.name, kind="video")


def test_variants_are_the_same_in_another_process():
    code = (
        "from pathlib import Path\n"
        "from longcat_tune.config.datasets import DatasetEntry\n"
        "from longcat_tune.data.captions import Captions\n"
        "entry = DatasetEntry(id='c', instance_data_dir=Path(), caption_strategy='instanceprompt',\n"
        "    instance_prompt='a, b, c, d, e', caption_shuffle={})\n"
        "print('|'.join(Captions.of_dataset(entry, seed=0).of(Path('a.mp4'), 'a.mp4', kind='video')))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip().split("|") == tags("a, b, c, d, e")


def test_all_orders_are_found_when_there_are_fewer_than_asked_for():
    assert tags("a, b", count=50) == ["a, b", "b, a"]
    assert set(tags("a, b, c, d", count=50)) == {", ".join(order) for order in permutations("abcd")}
    assert sorted(tags("a, a, b", count=50)) == ["a, a, b", "a, b, a", "b, a, a"]


@pytest.mark.parametrize("caption", ["a red ball", "trigger, a red ball", "trigger, a, a", "trigger"])
def test_captions_that_cannot_be_shuffled_stay_alone(caption):
    assert tags(caption, position_start=1, include_original=False) == [caption]


def test_the_original_may_be_left_out_and_shuffling_switched_off():
    assert tags("a, b", include_original=False) == ["b, a"]
    assert tags("a, b", enable=False) == ["a, b"]


def test_words_and_sentences_can_be_shuffled():
    assert tags("red  ball", split_on="space") == ["red  ball", "ball red"]
    assert tags("It is 2.5 m wide. It rolls.", split_on="period") == [
        "It is 2.5 m wide. It rolls.",
        "It rolls. It is 2.5 m wide.",
    ]
    assert tags("It is red. It rolls", split_on="period")[1] == "It rolls. It is red"


def test_each_of_several_captions_has_its_variants(tmp_path):
    (tmp_path / "a.txt").write_text("a, b\nc, d\nb, a\n")
    assert found(tmp_path / "a.mp4", caption_shuffle={}) == ("a, b", "b, a", "c, d", "d, c")
