"""Files of a run for the browser: the right types and parts, and nothing that is not a result."""

from __future__ import annotations

import pytest

from tests.server.renders import VIDEO, make_lora, make_renders, make_run, video_record
from tests.server.web import TOKEN, make_client

PLACE = "validation/step_000010/prompt_64x64_42.mp4"


@pytest.fixture
def results(tmp_path):
    results = make_run(tmp_path)
    make_renders(results, "step_000010", video_record())
    return results


@pytest.fixture
def client(tmp_path, results):
    return make_client(tmp_path)


def test_a_video_is_sent_whole_with_its_type(client):
    reply = client.get(f"/runs/dog/files/{PLACE}")
    assert reply.status_code == 200
    assert reply.content == VIDEO
    assert reply.headers["content-type"] == "video/mp4"
    assert reply.headers["accept-ranges"] == "bytes"
    assert "content-disposition" not in reply.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-1", 0, 1),
        ("bytes=100-", 100, 4095),
        ("bytes=-96", 4000, 4095),
        ("bytes=4000-9000", 4000, 4095),
    ],
)
def test_a_player_gets_the_part_that_it_asks_for(client, asked, first, last):
    reply = client.get(f"/runs/dog/files/{PLACE}", headers={"range": asked})
    assert reply.status_code == 206
    assert reply.content == VIDEO[first : last + 1]
    assert reply.headers["content-range"] == f"bytes {first}-{last}/4096"
    assert reply.headers["content-type"] == "video/mp4"


def test_a_part_beyond_the_end_is_refused(client):
    assert client.get(f"/runs/dog/files/{PLACE}", headers={"range": "bytes=5000-"}).status_code == 416


def test_only_the_head_is_sent_when_asked(client):
    reply = client.head(f"/runs/dog/files/{PLACE}")
    assert (reply.status_code, reply.content, reply.headers["content-length"]) == (200, b"", "4096")


def test_what_the_browser_has_is_not_sent_again_until_it_changes(client, results):
    etag = client.get(f"/runs/dog/files/{PLACE}").headers["etag"]
    again = client.get(f"/runs/dog/files/{PLACE}", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    (results / PLACE).write_bytes(VIDEO * 2)
    assert client.get(f"/runs/dog/files/{PLACE}", headers={"if-none-match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("name", "media_type", "saved_as"),
    [
        ("grid.png", "image/png", None),
        ("a.jpg", "image/jpeg", None),
        ("a.webp", "image/webp", None),
        ("a.json", "application/json", None),
        ("a.txt", "text/plain; charset=utf-8", None),
        ("events.jsonl", "application/x-ndjson", "dog-deep-events.jsonl"),
        ("lora.official.safetensors", "application/octet-stream", "dog-deep-lora.official.safetensors"),
    ],
)
def test_every_known_kind_has_its_type(client, results, name, media_type, saved_as):
    make_lora(results / "deep", name)
    reply = client.get(f"/runs/dog/files/deep/{name}")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == media_type
    disposition = reply.headers.get("content-disposition")
    assert disposition == (f'attachment; filename="{saved_as}"' if saved_as else None)
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_names_of_any_letters_are_found(client, results):
    make_renders(results, "step_000020", video_record("狗 100% #1?"))
    reply = client.get("/runs/dog/files/validation/step_000020/%E7%8B%97%20100%25%20%231%3F_64x64_42.mp4")
    assert reply.status_code == 200


@pytest.mark.parametrize("name", ["index.html", "x.svg", "x.js", "x.pt", "x.PNG", ".env", "x", "x.mp4.part"])
def test_other_kinds_are_not_served(client, results, name):
    make_lora(results / "validation", name)
    assert client.get(f"/runs/dog/files/validation/{name}").status_code == 404


OUTSIDE = [
    "../config.json",
    "..%2fconfig.json",
    "%2e%2e/config.json",
    "%2e%2e%2fconfig.json",
    "..%5cconfig.json",
    "validation/../../config.json",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "../../other/results/secret.txt",
    "../../../../../../../../etc/hostname",
    "link.txt",
    "linked/secret.txt",
    "picture.png",
    "ring.txt",
    "validation",
    "",
    "nothing.txt",
    "nothing.txt%00.png",
    "a" * 5000 + ".txt",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_beside_the_results_is_read(tmp_path, client, results, path):
    secret = make_lora(tmp_path / "runs" / "other" / "results", "secret.txt", b"SECRET")
    (results.parent / "config.json").write_bytes(b"SECRET")
    (results / "link.txt").symlink_to(secret)
    (results / "linked").symlink_to(secret.parent)
    (results / "picture.png").symlink_to(results.parent / "config.json")
    (results / "ring.txt").symlink_to(results / "ring.txt")
    reply = client.get(f"/runs/dog/files/{path}")
    assert 400 <= reply.status_code < 500
    assert b"SECRET" not in reply.content
    assert b"root:" not in reply.content


def test_a_symlink_among_the_results_is_followed(client, results):
    (results / "latest.mp4").symlink_to(results / PLACE)
    assert client.get("/runs/dog/files/latest.mp4").content == VIDEO


@pytest.mark.parametrize("run", ["cat", "..", "%2e%2e", "Dog", "dog%2f..", ".longcat-tune", "a" * 100])
def test_of_a_run_that_is_none_nothing_is_read(tmp_path, client, run):
    make_lora(tmp_path / "results", "secret.txt")
    assert 400 <= client.get(f"/runs/{run}/files/secret.txt").status_code < 500


def test_results_that_a_symlink_leads_out_of_the_workspace_are_not_served(tmp_path):
    results = make_run(tmp_path / "home")
    results.rmdir()
    make_lora(tmp_path / "elsewhere", "secret.txt", b"SECRET")
    results.symlink_to(tmp_path / "elsewhere")
    reply = make_client(tmp_path / "home").get("/runs/dog/files/secret.txt")
    assert reply.status_code == 403
    assert b"SECRET" not in reply.content


def test_files_need_the_token(tmp_path, results):
    client = make_client(tmp_path, host="0.0.0.0", token=TOKEN)
    assert client.get(f"/runs/dog/files/{PLACE}").status_code == 401
    reply = client.get(f"/runs/dog/files/{PLACE}", headers={"authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_files_are_only_read(client, results, method):
    assert getattr(client, method)(f"/runs/dog/files/{PLACE}").status_code == 405
    assert (results / PLACE).read_bytes() == VIDEO
