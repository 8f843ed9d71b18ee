"""The one way from what a person wrote to a path: nothing outside the roots is reached or told of."""

from __future__ import annotations

import os

import pytest

from longcat_tune.server.replies import Refusal
from longcat_tune.server.workspace import NAME, Workspace, checked_name, slug


@pytest.fixture
def workspace(tmp_path):
    """Two roots beside a folder that is none."""
    home, clips, other = (tmp_path.resolve() / name for name in ("home", "clips", "other"))
    for folder in (home / "runs", clips / "snow", other):
        folder.mkdir(parents=True)
    (home / "a.txt").write_text("a")
    (clips / "snow" / "fox.mp4").write_text("fox")
    (other / "secret.txt").write_text("secret")
    return Workspace((home, clips))


def refused(workspace, text: str, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        workspace.inside(text, **options)
    return caught.value


def test_what_is_inside_is_found_however_it_is_written(workspace):
    home, clips = workspace.roots
    assert workspace.inside("a.txt") == workspace.inside("./runs/../a.txt") == home / "a.txt"
    assert workspace.inside(str(home / "a.txt")) == home / "a.txt"
    assert workspace.inside(".") == workspace.inside(str(home)) == home
    assert workspace.inside("clips/snow/fox.mp4") == clips / "snow" / "fox.mp4"
    assert workspace.inside(str(clips)) == clips


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "../other",
        "../other/secret.txt",
        "../home/a.txt",
        "runs/../../other",
        "/etc/passwd",
        "/",
        "//etc/passwd",
    ],
)
def test_what_leads_out_is_refused(workspace, text):
    assert refused(workspace, text).status == 403
    assert refused(workspace, text, must_exist=False).status == 403


def test_whether_something_exists_outside_is_not_told(workspace, tmp_path):
    there, not_there = str(tmp_path / "other" / "secret.txt"), str(tmp_path / "other" / "unseen.txt")
    told = [refused(workspace, text) for text in (there, not_there)]
    assert told[0].status == told[1].status == 403
    assert told[0].text.replace("secret", "unseen") == told[1].text


def test_a_symlink_out_is_refused_and_one_inside_followed(workspace, tmp_path):
    home = workspace.home
    (home / "out").symlink_to(tmp_path / "other")
    (home / "direct").symlink_to(tmp_path / "other" / "secret.txt")
    (home / "dangling").symlink_to(tmp_path / "other" / "new.txt")
    (home / "in").symlink_to(home / "a.txt")
    for text in ("out", "out/secret.txt", "out/nothing.txt", "direct", "dangling"):
        assert refused(workspace, text, must_exist=False).status == 403
    assert workspace.inside("in") == home / "a.txt"
    # Not where the shell would end up, beside the folder that the link leads to.
    assert workspace.inside("out/../a.txt") == home / "a.txt"


def test_symlinks_in_a_ring_are_refused(workspace):
    (workspace.home / "ring").symlink_to(workspace.home / "ring")
    assert refused(workspace, "ring").status in {400, 404}


@pytest.mark.parametrize("text", ["", "a\0.txt", "a\n.txt", "\x1b[2J", "a\udcff", "x" * 5000])
def test_what_is_no_path_is_refused(workspace, text):
    refusal = refused(workspace, text, must_exist=False)
    assert refusal.status == 400
    refusal.text.encode()
    assert "\0" not in refusal.text


def test_too_long_a_name_does_not_exist(workspace):
    assert refused(workspace, "x" * 300).status in {400, 404}


@pytest.mark.parametrize(
    "name", ["雪中的狐狸.mp4", "at 3.14.15\u202fPM.mov", "no\u00a0break", "-rf", "%2e%2e", "a\\b"]
)
def test_unusual_names_are_names(workspace, name):
    (workspace.home / name).write_text("x")
    path = workspace.inside(name)
    assert path == workspace.home / name
    assert workspace.inside(workspace.shown(path)) == path


def test_the_kind_is_held(workspace):
    home = workspace.home
    os.mkfifo(home / "pipe")
    assert workspace.inside("runs", kind="folder") == home / "runs"
    assert workspace.inside("a.txt", kind="file") == home / "a.txt"
    assert refused(workspace, "runs", kind="file").status == 400
    assert refused(workspace, "pipe", kind="file").status == 400
    assert refused(workspace, "a.txt", kind="folder").status == 400
    assert refused(workspace, "a.txt/b", kind="folder").status == 404
    assert refused(workspace, "new").status == 404
    assert workspace.inside("new", kind="file", must_exist=False) == home / "new"


def test_what_is_shown_has_no_absolute_path_and_is_read_back(workspace):
    home, clips = workspace.roots
    (home / "clips").mkdir()  # called like the other root
    for path, text in [
        (home, "."),
        (home / "a.txt", "a.txt"),
        (home / "clips", "./clips"),
        (clips, "clips"),
        (clips / "snow" / "fox.mp4", "clips/snow/fox.mp4"),
    ]:
        assert workspace.shown(path) == text
        assert workspace.inside(text) == path
    with pytest.raises(Refusal):
        workspace.shown(home.parent / "other")


def test_roots_of_one_name_are_told_apart(tmp_path):
    roots = [tmp_path.resolve() / name for name in ("home", "a/clips", "b/clips", "c/clips")]
    for root in roots:
        root.mkdir(parents=True)
    workspace = Workspace(roots)
    assert [workspace.shown(root) for root in roots] == [".", "clips", "clips-2", "clips-3"]
    assert [workspace.inside(workspace.shown(root)) for root in roots] == roots


def test_run_and_dataset_names_lead_nowhere_else(workspace, tmp_path):
    assert workspace.run_folder("fox-1") == workspace.home / "runs" / "fox-1"
    assert workspace.dataset_file("snow") == workspace.home / "datasets" / "snow.json"
    for name in ("..", "a/b", "A", "-a", "a-", "", "x" * 61, "a\n", "%2e%2e", "a.b"):
        with pytest.raises(Refusal):
            workspace.run_folder(name)
        with pytest.raises(Refusal):
            checked_name(name)
    (workspace.home / "runs" / "out").symlink_to(tmp_path / "other")
    with pytest.raises(Refusal):
        workspace.run_folder("out")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Red Fox", "red-fox"),
        ("  Füchse im Schnee!  ", "fuchse-im-schnee"),
        ("../../etc/passwd", "etc-passwd"),
        ("雪", "unnamed"),
        ("", "unnamed"),
        ("a" * 59 + " b", "a" * 59),
    ],
)
def test_a_slug_is_a_name(text, name):
    assert slug(text) == name
    assert NAME.fullmatch(name)


def test_texts_lose_the_paths_of_this_machine(workspace):
    home, clips = workspace.roots
    texts = {
        f"{home}/a.txt: no caption": "a.txt: no caption",
        f"{clips}/snow/fox.mp4 is short": "clips/snow/fox.mp4 is short",
        f"cannot write in {home}": "cannot write in .",
        f"{home} and {clips}.": ". and clips.",
        f"{home}2/x {home}-2 {home}.old": "… … …",
        "error:/home/alice/x.json:12": "error:…:12",
        "no '/home/alice/my clips/a.mp4' here": "no … here",
        "--config=/data/x --out ~/y": "--config=… --out …",
        "file:///etc/passwd": "…",
        r"C:\Users\alice\a.mp4": "…",
        "see https://example.org/a/b": "see https://example.org/a/b",
        "4/5 clips and/or runs/fox at 2 it/s": "4/5 clips and/or runs/fox at 2 it/s",
    }
    assert {text: workspace.without_paths(text) for text in texts} == texts
