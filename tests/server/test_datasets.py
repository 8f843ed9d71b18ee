"""The pages of datasets as a person meets them: make one, see its clips, mend a caption, pair, delete.

The command line is the stand-in; what the real one says is read in test_datasets_clips.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from longcat_tune.server import datasets
from tests.server.web import TOKEN, make_client

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_clips.py")))
PATIENCE = 120.0
HTMX = {"HX-Request": "true"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name in ("a.mp4", "b.mp4", "c.avi", "dance/d.mp4"):
        path = home / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789")
        if name != "b.mp4":
            path.with_suffix(".txt").write_text(f"caption of {name}\n")
    (home / "starts").mkdir()
    (home / "starts" / "a.png").write_bytes(b"x")
    return home


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with make_client(home, command=STAND_IN) as client:
        yield client


@pytest.fixture
def made(client: TestClient) -> TestClient:
    reply = client.post("/datasets", data={"folder": "clips", "name": "Mine"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/datasets/mine")
    return client


def written(home: Path) -> list[dict]:
    entries: list[dict] = json.loads((home / "datasets" / "mine.json").read_text())
    return entries


def version(client: TestClient) -> str:
    found = re.search(r'name="version" value="(\w+)"', client.get("/datasets/mine").text)
    assert found is not None
    return found[1]


def until(done: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.02)


def worked(client: TestClient, address: str = "/datasets/mine/work") -> None:
    """Let the thumbnails and the check come to their end, as the page does."""
    assert client.post(address).status_code == 200
    until(lambda: client.get("/datasets/mine/state").headers.get("HX-Trigger") == "checked")
    until(lambda: "every 2s" not in clips_of(client))


def clips_of(client: TestClient, entry: str = "clips", **query: str | int) -> str:
    reply = client.get("/datasets/mine/clips", params={"entry": entry} | query)
    assert reply.status_code == 200, reply.text
    return str(reply.text)


def names(fragment: str) -> list[str]:
    return re.findall(r'class="name cut" title="([^"]+)"', fragment)


def clip_id(client: TestClient, name: str) -> str:
    found = re.search(rf'aria-label="Caption of {name}"', text := clips_of(client))
    assert found is not None
    return re.findall(r"clip=([0-9a-f]{16})", text[: found.start()])[-1]


def send_caption(client: TestClient, clip: str, text: str, before: str):
    query = {"entry": "clips", "clip": clip}
    data = {"text": text, "version": before}
    return client.post("/datasets/mine/caption", params=query, data=data, headers=HTMX)


def version_in(fragment: str) -> str:
    found = re.search(r'name="version" value="(\w+)"', fragment)
    assert found is not None
    return found[1]


def test_an_empty_workspace_says_what_to_do(tmp_path):
    page = make_client(tmp_path / "new").get("/datasets")
    assert page.status_code == 200
    assert "No datasets yet" in page.text


def test_a_dataset_is_made_from_a_folder(made, home):
    assert written(home) == [{"id": "clips", "instance_data_dir": "../clips"}]
    assert 'href="/datasets/mine"' in made.get("/datasets").text
    again = made.post("/datasets", data={"folder": "clips", "name": "mine"}, headers=HTMX)
    assert again.status_code == 409
    assert "already" in again.text


def test_a_dataset_needs_a_folder_of_the_workspace(client, home):
    for folder in ("", "..", "/etc", "gone", "clips/a.mp4", "a\0b"):
        assert 400 <= client.post("/datasets", data={"folder": folder}).status_code < 500
    assert not (home / "datasets").exists() or list((home / "datasets").iterdir()) == []


def test_the_folder_picker_goes_down_and_up(client):
    top = client.get("/datasets/-/folders", params={"picker": "new"}).text
    assert "at=clips" in top
    inside = client.get("/datasets/-/folders", params={"picker": "new", "at": "clips"}).text
    assert 'name="folder" value="clips"' in inside
    assert "videos: 4" in inside
    assert "at=." in inside
    assert client.get("/datasets/-/folders", params={"at": "../.."}).status_code == 403


def test_clips_are_shown_with_bucket_frames_captions_and_refusals(made):
    worked(made)
    shown = clips_of(made)
    assert names(shown) == ["a.mp4", "b.mp4", "c.avi", "dance/d.mp4"]
    assert shown.count("64x64@93") == 3
    assert "has no caption: clips/b.txt does not exist" in shown
    assert "write its caption" in shown
    assert "caption of dance/d.mp4" in shown
    findings = made.get("/datasets/mine/findings", params={"entry": "clips"}).text
    assert "found: 4" in findings
    assert "refused: 1" in findings
    assert "64x64@93" in findings


def test_clips_are_found_by_state_and_by_words(made):
    worked(made)
    assert names(clips_of(made, show="refused")) == ["b.mp4"]
    assert names(clips_of(made, show="used")) == ["a.mp4", "c.avi", "dance/d.mp4"]
    assert names(clips_of(made, search="DANCE")) == ["dance/d.mp4"]
    assert names(clips_of(made, search="nothing")) == []


def test_many_clips_have_pages(made, home, monkeypatch):
    monkeypatch.setattr("longcat_tune.server.datasets_browse.ON_A_PAGE", 3)
    worked(made)
    assert len(names(clips_of(made))) == 3
    assert names(clips_of(made, number=2)) == names(clips_of(made, number=99)) == ["dance/d.mp4"]


def test_thumbnails_are_served_and_kept(made):
    worked(made)
    [address, *_] = re.findall(r'src="(/datasets/-/thumbnails/[^"]+)"', clips_of(made))
    picture = made.get(address)
    assert (picture.status_code, picture.content) == (200, b"a picture")
    assert picture.headers["content-type"] == "image/jpeg"
    assert "immutable" in picture.headers["cache-control"]
    assert made.get(address.replace(".jpg", ".json")).status_code == 422
    assert made.get(re.sub(r"/[0-9a-f]{32}", f"/{'f' * 32}", address)).status_code == 404


def test_a_clip_plays_in_parts_and_only_if_browsers_know_its_kind(made):
    worked(made)
    [first, *_] = plays = re.findall(r'data-play="([^"]+)"', clips_of(made))
    assert len(plays) == 3  # not the avi
    reply = made.get(first.replace("&amp;", "&"), headers={"Range": "bytes=2-4"})
    assert (reply.status_code, reply.content) == (206, b"234")
    avi = made.get("/datasets/mine/play", params={"entry": "clips", "clip": clip_id(made, "c.avi")})
    assert avi.status_code == 415


def test_a_missing_caption_is_written_and_the_check_runs_again(made, home):
    worked(made)
    clip = clip_id(made, "b.mp4")
    form = made.get("/datasets/mine/caption", params={"entry": "clips", "clip": clip}).text
    reply = send_caption(made, clip, "a red ball", version_in(form))
    assert reply.status_code == 200
    assert "Saved as b.txt" in reply.text
    assert reply.headers["HX-Trigger"] == "checking"
    assert (home / "clips" / "b.txt").read_text() == "a red ball\n"
    until(lambda: "has no caption" not in clips_of(made))
    assert clips_of(made).count("64x64@93") == 4


def test_a_caption_that_changed_meanwhile_is_told_and_kept(made, home):
    worked(made)
    clip = clip_id(made, "a.mp4")
    form = made.get("/datasets/mine/caption", params={"entry": "clips", "clip": clip}).text
    (home / "clips" / "a.txt").write_text("theirs\n")
    reply = send_caption(made, clip, "mine & <b>", version_in(form))
    assert reply.status_code == 409
    assert reply.headers["HX-Retarget"] == "this"
    assert "theirs" in reply.text
    assert "mine &amp; &lt;b&gt;" in reply.text
    assert (home / "clips" / "a.txt").read_text() == "theirs\n"
    assert send_caption(made, clip, "mine", version_in(reply.text)).status_code == 200
    assert (home / "clips" / "a.txt").read_text() == "mine\n"


def test_captions_that_are_not_read_are_not_written(made, home):
    worked(made)
    clip = clip_id(made, "b.mp4")
    entries = [written(home)[0] | {"caption_strategy": "filename"}]
    (home / "datasets" / "mine.json").write_text(json.dumps(entries))
    shown = clips_of(made)
    assert "Taken from the file" in shown
    assert "a.txt beside it is not read" in shown
    assert "<textarea" not in shown
    assert send_caption(made, clip, "mine", "absent").status_code == 409
    assert not (home / "clips" / "b.txt").exists()


@pytest.mark.parametrize("clip", ["0" * 16, "../a", "", "x" * 5000])
def test_only_clips_of_the_entry_have_captions(made, home, clip):
    worked(made)
    before = sorted(path.name for path in (home / "clips").rglob("*"))
    assert send_caption(made, clip, "mine", "absent").status_code == 404
    assert sorted(path.name for path in (home / "clips").rglob("*")) == before


def test_keys_are_changed_by_the_form_and_only_changed_ones_are_written(made, home):
    form = made.get("/datasets/mine/entry", params={"number": 1}).text
    assert "video.num_frames" in form
    sent = {"version": version(made), "video.num_frames": "37", "repeats": "0", "box:crop": "1"}
    reply = made.post("/datasets/mine/entry", params={"entry": "clips"}, data=sent, headers=HTMX)
    assert reply.headers["HX-Redirect"] == "/datasets/mine"
    assert written(home) == [
        {"id": "clips", "instance_data_dir": "../clips", "crop": False, "video": {"num_frames": 37}}
    ]


def test_a_mistake_is_told_at_its_field_and_nothing_is_written(made, home):
    before = written(home)
    sent = {"version": version(made), "video.num_frames": "50", "id": "other"}
    reply = made.post("/datasets/mine/entry", params={"entry": "clips"}, data=sent, headers=HTMX)
    assert reply.status_code == 422
    assert re.search(r'num_frames".*?value="50".*?use 49 or 53', reply.text, re.S)
    assert 'value="other"' in reply.text
    assert reply.headers["HX-Retarget"] == "this"
    assert written(home) == before


def test_a_form_of_an_older_file_writes_nothing(made, home):
    old = version(made)
    (home / "datasets" / "mine.json").write_text(json.dumps([written(home)[0] | {"repeats": 2}]))
    posts = [
        ("entry?entry=clips", {"repeats": "1"}),
        ("pair?entry=clips", {"starts": "own"}),
        ("raw", {"text": '[{"id": "x", "instance_data_dir": "../clips"}]'}),
        ("entries", {"folder": "starts", "kind": "image"}),
        ("delete", {}),
    ]
    for address, data in posts:
        reply = made.post(f"/datasets/mine/{address}", data=data | {"version": old})
        assert reply.status_code == 409, address
    assert written(home)[0]["repeats"] == 2


def test_start_frames_are_paired_and_given_up(made, home):
    sent = {"version": version(made), "starts": "folder", "folder": "starts"}
    assert made.post("/datasets/mine/pair", params={"entry": "clips"}, data=sent).status_code == 303
    clips, images = written(home)
    assert (clips["is_i2v"], clips["conditioning_data"]) == (True, ["clips-starts"])
    assert images["instance_data_dir"] == "../starts"
    chosen = made.get("/datasets/mine/pair", params={"number": 1}).text
    assert re.search(r'value="folder" checked', chosen)
    sent = {"version": version(made), "starts": "none"}
    assert made.post("/datasets/mine/pair", params={"entry": "clips"}, data=sent).status_code == 303
    assert written(home) == [{"id": "clips", "instance_data_dir": "../clips"}]


def test_folders_are_added_and_taken_out(made, home):
    sent = {"version": version(made), "folder": "starts", "kind": "image"}
    assert made.post("/datasets/mine/entries", data=sent).status_code == 303
    assert [entry["id"] for entry in written(home)] == ["clips", "starts"]
    sent = {"version": version(made)}
    assert made.post("/datasets/mine/entry/remove", params={"entry": "clips"}, data=sent).status_code == 303
    assert [entry["id"] for entry in written(home)] == ["starts"]
    sent = {"version": version(made)}
    last = made.post("/datasets/mine/entry/remove", params={"entry": "starts"}, data=sent)
    assert last.status_code == 409


def test_the_text_of_the_file_is_written_as_it_is(made, home):
    text = '[\n  // one folder\n  {"id": "b", "instance_data_dir": "../clips"},\n]'
    sent = {"version": version(made), "text": text.replace("\n", "\r\n")}
    assert made.post("/datasets/mine/raw", data=sent).status_code == 303
    assert (home / "datasets" / "mine.json").read_text() == f"{text}\n"
    assert "comments" in made.get("/datasets/mine/entry", params={"number": 1}).text


@pytest.mark.parametrize(
    "text", ["{", "[]", '[{"id": "a"}]', '[{"id": "a", "instance_data_dir": "/etc"}]', "[" * 9999]
)
def test_a_text_that_is_unsound_is_told_and_not_written(made, home, text):
    before = written(home)
    reply = made.post("/datasets/mine/raw", data={"version": version(made), "text": text}, headers=HTMX)
    assert reply.status_code == 422
    assert 'role="alert"' in reply.text
    assert written(home) == before


def test_a_file_with_mistakes_is_shown_with_them(made, home):
    path = home / "datasets" / "mine.json"
    path.write_text('[{"id": "a", "instance_data_dir": "../clips", "repeats": -1}]')
    assert "repeats (-1) must be at least 0" in made.get("/datasets/mine/entry", params={"number": 1}).text
    for text in ("{", "5", "", '[{"id": "a", "instance_data_dir": "/etc"}]'):
        path.write_text(text)
        page = made.get("/datasets/mine")
        assert page.status_code == 200
        assert "notice bad" in page.text
        assert made.post("/datasets/mine/work").status_code == 200


def test_a_folder_outside_is_never_looked_into(made, home, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "s.mp4").write_bytes(b"s")
    entry = {"id": "clips", "instance_data_dir": str(secret)}
    (home / "datasets" / "mine.json").write_text(json.dumps([entry]))
    made.post("/datasets/mine/work")
    assert made.get("/datasets/mine/clips", params={"entry": "clips"}).status_code == 404
    assert not (home / ".longcat-tune" / "thumbnails").exists()
    assert not (home / ".longcat-tune" / "checks").exists()


def test_deleting_leaves_the_clips(made, home):
    reply = made.post("/datasets/mine/delete", data={"version": version(made)})
    assert (reply.status_code, reply.headers["location"]) == (303, "/datasets")
    assert not (home / "datasets" / "mine.json").exists()
    assert (home / "clips" / "a.mp4").exists()
    assert made.get("/datasets/mine").status_code == 404


def test_a_newer_check_takes_the_place_of_one_that_runs(made, home):
    (home / "clips" / "slow.mp4").write_bytes(b"x")
    assert "every 1s" in made.post("/datasets/mine/work").text
    (home / "clips" / "slow.mp4").unlink()
    (home / "clips" / "b.txt").write_text("a red ball")
    worked(made)
    assert clips_of(made).count("64x64@93") == 4


def test_nothing_is_checked_twice_unless_asked_for_or_changed(made, home):
    worked(made)
    kept = home / ".longcat-tune" / "checks" / "mine" / "report-30.json"
    before = kept.stat().st_mtime_ns
    assert "every 1s" not in made.post("/datasets/mine/work").text
    assert kept.stat().st_mtime_ns == before
    assert "every 1s" in made.post("/datasets/mine/work?again=true").text
    worked(made)
    (home / "clips" / "b.txt").write_text("a red ball")
    assert "every 1s" in made.post("/datasets/mine/work").text


def test_a_check_that_gives_no_report_is_told(home):
    words = (sys.executable, "-c", "raise SystemExit('error: no memory left; close something')")
    with make_client(home, command=words) as client:
        client.post("/datasets", data={"folder": "clips", "name": "mine"})
        client.post("/datasets/mine/work")
        until(lambda: client.get("/datasets/mine/state").headers.get("HX-Trigger") == "checked")
        assert "no memory left" in client.get("/datasets/mine/state").text
        until(lambda: "could not be made" in clips_of(client))
        assert "every 2s" not in clips_of(client)


def test_the_server_ends_while_something_runs(home):
    (home / "clips" / "slow.mp4").write_bytes(b"x")
    with make_client(home, command=STAND_IN) as client:
        client.post("/datasets", data={"folder": "clips", "name": "mine"})
        client.post("/datasets/mine/work")
    assert not (home / ".longcat-tune" / "checks" / "mine" / "report-30.json").exists()


def test_others_see_no_path_of_this_machine(home):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with make_client(home, command=STAND_IN, host="0.0.0.0", token=TOKEN) as client:
        client.headers.update(bearer)
        client.post("/datasets", data={"folder": "clips", "name": "mine"})
        worked(client)
        pages = [client.get(f"/datasets{rest}").text for rest in ("", "/mine", "/mine/state")]
        assert str(home) not in "".join([*pages, clips_of(client)])


def test_both_languages_and_little_weight(made):
    worked(made)
    chinese = {"Accept-Language": "zh"}
    for address in ("/datasets", "/datasets/mine", "/datasets/mine/clips?entry=clips"):
        assert len(made.get(address).content) < 60_000
        assert re.search(r"[\u4e00-\u9fff]{2}", made.get(address, headers=chinese).text)


def test_a_command_that_cannot_be_started_is_told(home):
    with make_client(home, command=(str(home / "gone"),)) as client:
        client.post("/datasets", data={"folder": "clips", "name": "mine"})
        client.post("/datasets/mine/work")
        until(lambda: "could not be made" in clips_of(client))
        until(lambda: client.get("/datasets/mine/state").headers.get("HX-Trigger") == "checked")
        assert "the command cannot be started" in client.get("/datasets/mine/state").text


def test_a_check_whose_report_cannot_be_kept_is_told(made, home):
    (home / ".longcat-tune").mkdir()
    (home / ".longcat-tune" / "checks").write_text("in the way")
    made.post("/datasets/mine/work")
    until(lambda: made.get("/datasets/mine/state").headers.get("HX-Trigger") == "checked")
    assert "a file stands where a folder must be" in made.get("/datasets/mine/state").text


def test_a_form_is_judged_in_a_thread_while_others_are_answered(made, home, monkeypatch):
    in_the_way = []
    judge = datasets.judge

    def watched(*words):
        # Only the thread that answers requests has a loop.
        with suppress(RuntimeError):
            in_the_way.append(asyncio.get_running_loop())
        return judge(*words)

    monkeypatch.setattr(datasets, "judge", watched)
    made.post("/datasets/mine/entry?entry=clips", data={"repeats": "3", "version": version(made)})
    assert (written(home)[0]["repeats"], in_the_way) == (3, [])
