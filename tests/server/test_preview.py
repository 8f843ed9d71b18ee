"""Previews are watched while they render, and kept with what was asked until somebody deletes them."""

from __future__ import annotations

import re
import sys

import pytest

from longcat_tune.server.preview_progress import progress_of
from tests.server.previews import FORM, HTMX, end, folders, submitted, upload
from tests.server.renders import make_lora, make_renders, video_record
from tests.server.stand_in_jobs import wait_until
from tests.server.web import FROM_OUR_PAGE, TOKEN, make_client

RENDERER = """
import json, pathlib, sys, time
words = sys.argv[1:]
config = json.loads(pathlib.Path(words[words.index("--config") + 1]).read_text())
folder = pathlib.Path(config["output_dir"], "validation", "base")
folder.mkdir(parents=True)
(folder / "x.preview.png").write_bytes(b"strip")
print("12:00:00 Rendering 3/20, 1.5/s, 0:00:11 left ", flush=True)
while not pathlib.Path("go.txt").exists():
    time.sleep(0.02)
(folder / "x.mp4").write_bytes(b"video")
(folder / "x.png").write_bytes(b"strip")
(folder / "renders.json").write_text(json.dumps(RECORD))
print("12:00:01 Rendering 20/20, 1.5/s ", flush=True)
""".replace("RECORD", repr({"videos": [video_record(file="x.mp4", strip="x.png")], "failures": []}))
"""In place of the command line: renders once it is let."""


def test_a_start_frame_is_kept_with_the_preview_and_used_again(tmp_path):
    client = make_client(tmp_path)
    folder, _, argv = submitted(client, tmp_path, start=upload(client))
    for path in (tmp_path / ".longcat-tune" / "uploads").iterdir():
        path.unlink()
    assert argv[-2:] == ["--image", f".longcat-tune/previews/{folder.name}/start.png"]
    assert client.get(f"/preview/{folder.name}/start").content == (folder / "start.png").read_bytes()
    again = client.get(f"/preview?again={folder.name}").text
    assert f'name="start" value="{folder.name}"' in again
    assert f'src="/preview/{folder.name}/start"' in again
    other, _, _ = submitted(client, tmp_path, start=folder.name)
    assert other != folder
    assert (other / "start.png").read_bytes() == (folder / "start.png").read_bytes()


def test_a_render_is_watched_until_it_plays(tmp_path):
    client = make_client(tmp_path, command=(sys.executable, "-c", RENDERER))
    with client:
        folder, _, _ = submitted(client, tmp_path)
        live = f"/preview/{folder.name}/live"
        wait_until(lambda: "Rendering 3/20" in client.get(live).text)
        text = client.get(live).text
        assert '<progress class="progress" value="3" max="20"' in text
        strip = f"/preview/{folder.name}/files/validation/base/x.preview.png"
        assert f'<img class="strip" src="{strip}?v=' in text
        assert client.get(strip).content == b"strip"
        assert client.post(f"/preview/{folder.name}/delete", headers=HTMX).status_code == 409
        (tmp_path / "go.txt").touch()
        wait_until(lambda: "HX-Retarget" in client.get(live, headers=HTMX).headers)
        text = client.get(live, headers=HTMX).text
    video = f"/preview/{folder.name}/files/validation/base/x.mp4"
    assert f'<video src="{video}?v=' in text
    assert "0.987" in text
    assert client.get(video, headers={"range": "bytes=1-2"}).content == b"id"
    assert "every 2s" not in text


def test_previews_are_listed_newest_first_with_what_was_asked(tmp_path):
    client = make_client(tmp_path)
    for number in range(3):
        submitted(client, tmp_path, prompt=f"prompt number {number}")
    text = client.get("/preview").text
    prompts = re.findall(r"<h3 [^>]*>([^<]*)</h3>", text)
    assert prompts == ["prompt number 2", "prompt number 1", "prompt number 0"]
    for told in ("64×80", "3.5", "blur"):
        assert told in text


def test_only_the_newest_are_shown_unless_all_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("longcat_tune.server.preview.MOST_SHOWN", 1)
    client = make_client(tmp_path)
    for _ in range(2):
        submitted(client, tmp_path)
    assert client.get("/preview").text.count("<article") == 1
    assert "full=true" in client.get("/preview").text
    assert client.get("/preview?full=true").text.count("<article") == 2


def test_a_failed_preview_tells_the_error_and_shows_its_log(tmp_path):
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path)
    end(client, folder, 1, f"12:00:00 reading <b>\nerror: {tmp_path}/x (1) is wrong; correct it\n")
    text = client.get("/preview").text
    assert f"{tmp_path}/x (1) is wrong; correct it" in text
    assert "Failed" in text
    log = client.get(f"/preview/{folder.name}/log").text
    assert "reading &lt;b&gt;" in log


def test_from_afar_no_path_of_the_machine_is_told(tmp_path):
    client = make_client(tmp_path, host="0.0.0.0", token=TOKEN)
    client.headers["authorization"] = f"Bearer {TOKEN}"
    folder, _, _ = submitted(client, tmp_path)
    end(client, folder, 1, f"{tmp_path}/a\nerror: {tmp_path}/x and /etc/secret are wrong\n")
    for address in ("/preview", f"/preview/{folder.name}/log"):
        text = client.get(address).text
        assert "are wrong" in text
        assert str(tmp_path) not in text
        assert "/etc/secret" not in text


def test_a_cancelled_preview_says_so_and_can_be_deleted(tmp_path):
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path)
    assert "Cancelled" in client.post(f"/preview/{folder.name}/cancel", headers=HTMX).text
    assert client.post(f"/preview/{folder.name}/delete", headers=HTMX).status_code == 200
    assert not folder.exists()
    assert client.get(f"/preview/{folder.name}/live").status_code == 404


def test_a_preview_whose_job_is_forgotten_still_shows_its_render(tmp_path):
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path)
    make_renders(folder / "results", "base", video_record())
    [job] = client.app.state.jobs.list()
    (job.folder / "job.json").unlink()
    text = client.get("/preview").text
    assert "<video" in text
    assert "Finished" in text


def test_deleting_follows_no_symlink(tmp_path):
    client = make_client(tmp_path / "home")
    folder, _, _ = submitted(client, tmp_path / "home")
    end(client, folder, 0)
    keep = make_lora(tmp_path / "elsewhere")
    (folder / "linked").symlink_to(keep.parent)
    assert client.post(f"/preview/{folder.name}/delete").status_code == 303
    assert keep.exists()
    folder, _, _ = submitted(client, tmp_path / "home")
    end(client, folder, 0)
    folder.rename(tmp_path / "elsewhere" / "preview")
    folder.symlink_to(tmp_path / "elsewhere" / "preview")
    assert client.post(f"/preview/{folder.name}/delete").status_code == 403
    assert (tmp_path / "elsewhere" / "preview" / "preview.json").exists()


@pytest.mark.parametrize("address", ["live", "log", "start", "cancel", "delete", "files/config.json"])
@pytest.mark.parametrize("name", ["20260101-000000-123456abcd", "..", "%2e%2e", "..%2f..", "x"])
def test_of_a_preview_that_is_none_nothing_is_told(tmp_path, name, address):
    client = make_client(tmp_path)
    (tmp_path / "config.json").write_text("SECRET")
    method = client.post if address in {"cancel", "delete"} else client.get
    reply = method(f"/preview/{name}/{address}")
    assert reply.status_code in {404, 405}
    assert "SECRET" not in reply.text


def test_only_results_are_sent(tmp_path):
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path)
    make_lora(folder / "results" / "validation", "index.html")
    for path in ("../config.json", "%2e%2e%2fpreview.json", "validation/index.html", "..%2f..%2ftexts.json"):
        assert client.get(f"/preview/{folder.name}/files/{path}").status_code == 404


def test_another_site_changes_nothing(tmp_path):
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path)
    end(client, folder, 0)
    evil = FROM_OUR_PAGE | {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    for address in ("/preview", f"/preview/{folder.name}/delete", f"/preview/{folder.name}/cancel"):
        assert client.post(address, data=FORM, headers=evil).status_code == 403
    assert folders(tmp_path) == [folder]


def test_what_was_written_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    client = make_client(tmp_path)
    folder, _, _ = submitted(client, tmp_path, prompt=evil, negative_prompt=evil)
    for address in ("/preview", f"/preview?again={folder.name}"):
        text = client.get(address).text
        assert "&lt;script&gt;" in text
        assert "<script>" not in text


class FakeJob:
    def __init__(self, state, log=""):
        self.state, self._log = state, log

    def log_tail(self, lines):
        return "\n".join(self._log.splitlines()[-lines:])


@pytest.mark.parametrize(
    ("log", "counted", "last"),
    [
        ("", None, ""),
        ("12:00:00 render dog: 64 wide", None, "render dog: 64 wide"),
        ("12:00:00 Encoding captions 2/2, 3.19/s \n12:00:01 loading", ("Encoding captions", 2, 2), "loading"),
        ("12:00:00 Rendering 4/40, 2.7/s, 0:00:10 left \n", ("Rendering", 4, 40), None),
        ("12:00:00 Rendering 4/40, 2/s\n12:00:05 Rendering 9/40, 2/s", ("Rendering", 9, 40), None),
    ],
)
def test_progress_is_read_from_the_log(tmp_path, log, counted, last):
    progress = progress_of(FakeJob("running", log), tmp_path, told=str)
    found = progress.counted
    assert (None if found is None else (found.what, found.done, found.total)) == counted
    assert last is None or progress.last_line == last


def test_the_newest_strip_is_shown_only_while_something_renders(tmp_path):
    folder = make_renders(tmp_path, "base")
    make_lora(folder, "a.preview.png")
    running = progress_of(FakeJob("running"), tmp_path, told=str)
    assert running.strip is not None
    assert running.strip[0] == "validation/base/a.preview.png"
    assert progress_of(FakeJob("finished"), tmp_path, told=str).strip is None


def test_a_strip_that_goes_while_it_is_looked_at_is_none(tmp_path):
    make_renders(tmp_path, "base", video_record())
    (tmp_path / "validation" / "base" / "gone.preview.png").symlink_to(tmp_path / "nowhere")
    assert progress_of(FakeJob("running"), tmp_path, told=str).strip is None


def test_without_job_and_render_a_preview_is_lost(tmp_path):
    assert progress_of(None, tmp_path, told=str).state == "lost"
    make_renders(tmp_path, "base", video_record())
    assert progress_of(None, tmp_path, told=str).state == "finished"
