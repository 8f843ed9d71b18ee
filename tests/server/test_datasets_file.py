"""A data file is judged by the loader, told about entry by entry, and written only when nobody else has."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from longcat_tune.server.datasets_file import (
    LONGEST_TEXT,
    delete_data_file,
    folder_of,
    judge,
    judge_file,
    list_names,
    read_data_file,
    write_data_file,
)
from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import Workspace

CLIPS = {"id": "clips", "instance_data_dir": "../clips"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    home = tmp_path / "home"
    (home / "clips").mkdir(parents=True)
    (home / "datasets").mkdir()
    return Workspace((home.resolve(),))


def judged(workspace: Workspace, *entries):
    return judge(workspace, "mine", json.dumps(entries))


def told(workspace: Workspace, *entries) -> list[tuple[str, str]]:
    return [(problem.entry, problem.key) for problem in judged(workspace, *entries).problems]


def test_a_sound_text_gives_entries_with_their_folders(workspace):
    [entry] = judged(workspace, CLIPS).entries
    assert folder_of(entry, workspace) == workspace.home / "clips"
    [gone] = judged(workspace, CLIPS | {"instance_data_dir": str(workspace.home / "gone")}).entries
    assert folder_of(gone, workspace) is None


def test_judging_leaves_nothing_behind(workspace):
    judged(workspace, CLIPS)
    judged(workspace, {"id": "clips"})
    assert list(workspace.datasets.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"repeats": -1}, "repeats"),
        ({"video": {"num_frames": 50}}, "video.num_frames"),
        ({"video": {"num_framse": 5}}, ""),
        ({"caption_strategy": "instanceprompt"}, "instance_prompt"),
        ({"caption_strategy": "csv", "caption_table": {}}, "caption_table.path"),
        ({"conditioning_data": ["nobody"]}, "conditioning_data"),
        ({"reapeats": 1}, ""),
        ({"crop_style": "face"}, "crop_style"),
        ({"task_mix": {"i2v": -1}}, "task_mix.i2v"),
    ],
)
def test_what_is_wrong_is_told_beside_its_key(workspace, changes, key):
    assert told(workspace, CLIPS | changes) == [("clips", key)]


def test_an_entry_without_an_id_is_told_by_its_number(workspace):
    assert told(workspace, CLIPS, {"instance_data_dir": "x"}) == [("entry 2", "id")]


def test_what_has_no_effect_is_a_notice(workspace):
    [notice] = judged(workspace, CLIPS | {"instance_prompt": "a dog"}).notices
    assert notice.startswith("clips: instance_prompt has no effect")


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "[5]", '[{"id": "a", "id": "b"}]', "[" * 5000, '[{"id": "\\ud800"}]', "[1e400]"],
)
def test_texts_that_are_no_list_of_entries_are_told(workspace, text):
    assert judge(workspace, "mine", text).problems
    assert judge(workspace, "mine", text).entries == ()


def test_no_message_holds_a_path_of_the_machine(workspace):
    for entries in ([], [CLIPS | {"repeats": -1}], [CLIPS, CLIPS], [CLIPS | {"instance_data_dir": "/etc"}]):
        for problem in judged(workspace, *entries).problems:
            assert str(workspace.home) not in problem.text
            assert ".draft" not in problem.text


def test_a_text_that_is_too_long_is_not_looked_at(workspace):
    with pytest.raises(Refusal) as refusal:
        judge(workspace, "mine", " " * (LONGEST_TEXT + 1))
    assert refusal.value.status == 413


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"instance_data_dir": "/etc"}, "instance_data_dir"),
        ({"instance_data_dir": "../../elsewhere"}, "instance_data_dir"),
        ({"instance_data_dir": "../out"}, "instance_data_dir"),
        # Inside from the data file, where it is not; the tool then looks in the folder where it runs.
        ({"instance_data_dir": "../elsewhere"}, "instance_data_dir"),
        ({"instance_data_dir": "a\x00b"}, "instance_data_dir"),
        ({"--instance-data-dir": "/etc", "instance_data_dir": None}, "instance_data_dir"),
        ({"cache_dir_vae": "/tmp"}, "cache_dir_vae"),
        ({"dataset_type": "text_embeds", "cache_dir": "../elsewhere"}, "cache_dir"),
        ({"caption_strategy": "csv", "caption_table": {"path": "/etc/passwd"}}, "caption_table.path"),
        ({"caption_strategy": "csv", "csv": {"path": "../../x.csv"}}, "caption_table.path"),
    ],
)
def test_no_path_leads_out_of_the_workspace(workspace, tmp_path, changes, key):
    (tmp_path / "elsewhere").mkdir()
    (workspace.home / "out").symlink_to(tmp_path / "elsewhere")
    values = {name: value for name, value in (CLIPS | changes).items() if value is not None}
    result = judged(workspace, values)
    assert [problem.key for problem in result.problems] == [key]
    assert result.entries == ()


def test_a_file_that_somebody_put_there_is_judged_the_same(workspace):
    path = workspace.datasets / "mine.json"
    path.write_text(json.dumps([CLIPS | {"instance_data_dir": "/etc"}]))
    assert judge_file(workspace, "mine", path).entries == ()


def test_entries_are_read_in_our_spelling_and_the_rest_stays(workspace):
    text = '[{"--id": "clips", "instance-data-dir": "../clips", "csv": {"path": "a"}, "hash_filenames": 1}]'
    (workspace.datasets / "mine.json").write_text(text)
    assert read_data_file(workspace, "mine").entries == (
        CLIPS | {"caption_table": {"path": "a"}, "hash_filenames": 1},
    )


def test_comments_are_seen(workspace):
    path = workspace.datasets / "mine.json"
    path.write_text(f"[{json.dumps(CLIPS)}, ] // one folder\n")
    assert read_data_file(workspace, "mine").commented
    path.write_text(json.dumps([CLIPS]))
    assert not read_data_file(workspace, "mine").commented


def test_a_file_that_changed_meanwhile_is_not_written_over(workspace):
    write_data_file(workspace, "mine", "[1]\n", version=None)
    version = read_data_file(workspace, "mine").version
    write_data_file(workspace, "mine", "[2]\n", version=version)
    with pytest.raises(Refusal) as refusal:
        write_data_file(workspace, "mine", "[3]\n", version=version)
    assert refusal.value.status == 409
    with pytest.raises(Refusal, match="already"):
        write_data_file(workspace, "mine", "[4]\n", version=None)
    assert (workspace.datasets / "mine.json").read_text() == "[2]\n"


def test_only_names_of_datasets_are_listed_and_read(workspace):
    for name in ("b.json", "a.json", ".x.json", "No Name.json", "c.txt"):
        (workspace.datasets / name).write_text("[]")
    assert list_names(workspace) == ["a", "b"]
    for name in ("../a", ".x", "No Name", "gone"):
        with pytest.raises(Refusal):
            read_data_file(workspace, name)


def test_of_those_who_edit_the_same_version_at_once_one_is_first(workspace):
    write_data_file(workspace, "mine", json.dumps([CLIPS]), version=None)
    version = read_data_file(workspace, "mine").version
    together = Barrier(8)

    def write(number: int) -> bool:
        together.wait()
        try:
            if number == 0:
                delete_data_file(workspace, "mine", version=version)
            else:
                write_data_file(workspace, "mine", json.dumps([CLIPS | {"repeats": number}]), version=version)
        except Refusal:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1
