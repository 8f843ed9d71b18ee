"""Start frames from a browser: pictures become PNGs of our own, everything else leaves nothing behind."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import pytest
from PIL import Image, PngImagePlugin

from longcat_tune.server import uploads
from longcat_tune.server.replies import Refusal
from longcat_tune.server.upload_formats import is_whole, sniff
from tests.server.web import ADDRESS, TOKEN, make_client

ROUTE = "/preview/uploads"
AS_JSON = {"accept": "application/json"}


def picture(kind: str = "PNG", size=(64, 48), mode: str = "RGB", colour="teal", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 100), 90).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def send(home, data: bytes, **headers):
    return make_client(home).post(ROUTE, content=data, headers=AS_JSON | headers)


def kept(home):
    """All files that there are below the workspace."""
    return [path for path in home.rglob("*") if path.is_file()]


def refused(home, data: bytes) -> int:
    reply = send(home, data)
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.json()["error"]
    assert kept(home) == []
    return reply.status_code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_kept_as_a_png_under_a_name_of_ours(tmp_path, kind):
    reply = send(tmp_path, picture(kind), **{"content-type": "image/gif"})
    assert reply.status_code == 201
    [path] = kept(tmp_path)
    assert path.parent == tmp_path / ".longcat-tune" / "uploads"
    assert path.name == f"{reply.json()['name']}.png"
    assert uploads.NAME.fullmatch(reply.json()["name"])
    with Image.open(path) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 48), "RGB")


def test_an_upload_can_be_looked_at(tmp_path):
    client = make_client(tmp_path)
    address = client.post(ROUTE, content=picture()).json()["address"]
    reply = client.get(address)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(reply.content)) as image:
        assert image.size == (64, 48)


def test_a_photograph_is_turned_upright_and_loses_all_else(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where I live"
    data = picture("JPEG", exif=exif, icc_profile=b"profile" * 20, comment=b"a comment")
    assert send(tmp_path, data).status_code == 201
    [path] = kept(tmp_path)
    with Image.open(path) as image:
        assert image.size == (48, 64)
        assert not image.info
        assert not image.getexif()
    assert b"where I live" not in path.read_bytes()


def test_texts_of_a_png_are_dropped(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "<script>alert(1)</script>")
    send(tmp_path, picture(pnginfo=texts, dpi=(300, 300)))
    [path] = kept(tmp_path)
    assert b"script" not in path.read_bytes()


def test_transparency_becomes_white_and_deep_grey_keeps_its_tones():
    with Image.open(io.BytesIO(uploads.reencode(picture(mode="RGBA", colour=(0, 0, 0, 0))))) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)
    with Image.open(io.BytesIO(uploads.reencode(picture(mode="I;16", colour=128 * 256)))) as image:
        assert image.getpixel((0, 0)) == (128, 128, 128)
    few = Image.new("P", (64, 48), 1)
    few.putpalette([255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    few.save(buffer, "PNG", transparency=1)
    with Image.open(io.BytesIO(uploads.reencode(buffer.getvalue()))) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
LIES = {
    "nothing": b"",
    "svg": SVG,
    "svg with a declaration": b'<?xml version="1.0"?>' + SVG,
    "html": b"<!doctype html><script>alert(1)</script>",
    "gif": picture("GIF"),
    "tiff": picture("TIFF"),
    "bmp": picture("BMP"),
    "ico": picture("ICO"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
    "zip": b"PK\x03\x04" + bytes(200),
    "text": b"a picture, really",
    "multipart": b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + picture() + b"\r\n--x--\r\n",
    "a script before a png": b"<script></script>" + picture(),
    "an mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(200),
    "a wave": b"RIFF\x24\x00\x00\x00WAVE" + bytes(28),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_picture_by_its_content_is_refused(tmp_path, name):
    assert refused(tmp_path, LIES[name]) == 415


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("tail", [SVG, b"PK\x03\x04" + bytes(50), b"<?php system('id') ?>", b"GIF89a"])
def test_a_picture_that_goes_on_as_something_else_is_refused(tmp_path, kind, tail):
    assert refused(tmp_path, picture(kind) + tail) == 422


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_cut_off_anywhere_is_refused(tmp_path, kind):
    data = noise(kind)
    for length in (12, 40, len(data) // 4, len(data) // 2, len(data) - 20, len(data) - 1):
        with pytest.raises(Refusal):
            uploads.reencode(data[:length])
    assert refused(tmp_path, data[: len(data) // 2]) == 422


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_picture_is_refused_or_decoded_but_never_an_error(kind):
    data = noise(kind)
    for place in range(8, len(data) - 20, len(data) // 40):
        damaged = data[:place] + b"\xff\x00\x13\x37" + data[place + 4 :]
        with suppress(Refusal):
            assert sniff(uploads.reencode(damaged)) == "PNG"


def test_a_camera_may_put_further_pictures_and_zeros_after_the_first(tmp_path):
    assert send(tmp_path, picture("JPEG") + bytes(100) + picture("JPEG")).status_code == 201


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"quality": 30}])
def test_jpegs_of_every_kind_are_whole(options):
    data = noise("JPEG", **options)
    assert is_whole(data, "JPEG")
    assert not is_whole(data[:-1], "JPEG")


def test_a_file_of_nothing_but_markers_is_judged_in_no_time():
    start = b"\xff\xd8\xff"
    for tail in (b"\xff" * 5_000_000, b"\xff\xd0" * 2_500_000, b"\xff\xda\x00\x02" * 1_000_000):
        assert not is_whole(start + tail, "JPEG")
    assert not is_whole(b"\xff\xd8\xff\xd9" * 1_000_000, "JPEG")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_states(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8001), (30000, 30000), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_the_size_that_it_states(tmp_path, size):
    assert refused(tmp_path, png_that_states(*size)) == 413


def test_a_text_that_unpacks_to_much_more_is_refused(tmp_path):
    data = png_that_states(64, 64)
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    assert refused(tmp_path, data[:33] + bomb + data[33:]) == 422


@pytest.mark.parametrize("size", [(15, 64), (1, 1), (1000, 100)])
def test_a_picture_that_fills_no_frame_is_refused(tmp_path, size):
    assert refused(tmp_path, picture(size=size)) == 422


def test_an_upload_that_states_too_many_bytes_is_refused_unread(tmp_path):
    def body():
        raise AssertionError("the body was read")
        yield b""

    client = make_client(tmp_path)
    reply = client.post(ROUTE, content=body(), headers={"content-length": str(uploads.MOST_BYTES + 1)})
    assert reply.status_code == 413


def test_an_upload_that_states_no_size_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    data = noise("PNG")
    reply = make_client(tmp_path).post(
        ROUTE, content=(data[at : at + 100] for at in range(0, len(data), 100))
    )
    assert reply.status_code == 413
    assert kept(tmp_path) == []


def test_old_uploads_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "KEPT", 3)
    client = make_client(tmp_path)
    names = [client.post(ROUTE, content=picture()).json()["name"] for _ in range(5)]
    assert {path.stem for path in kept(tmp_path)} == set(names[-3:])
    assert client.get(f"{ROUTE}/{names[0]}").status_code == 404


@pytest.mark.parametrize(
    "name", ["..%2f..%2fsecret", "x" * 32, "a" * 31, "%00", "%2e%2e", "A" * 32, "a" * 32]
)
def test_only_uploads_are_sent(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / ".longcat-tune" / "uploads").mkdir(parents=True)
    (tmp_path / ".longcat-tune" / "uploads" / f"{'a' * 32}.png").symlink_to(tmp_path / "secret.png")
    assert 400 <= make_client(tmp_path).get(f"{ROUTE}/{name}").status_code < 500


def test_another_site_uploads_nothing(tmp_path):
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        client = make_client(tmp_path)
        assert client.post(ROUTE, content=picture(), headers=headers).status_code == 403
    assert kept(tmp_path) == []


def test_an_upload_needs_the_token(tmp_path):
    client = make_client(tmp_path, host="0.0.0.0", token=TOKEN)
    headers = {"origin": ADDRESS}
    assert client.post(ROUTE, content=picture(), headers=headers).status_code == 401
    assert kept(tmp_path) == []
    bearer = headers | {"authorization": f"Bearer {TOKEN}"}
    assert client.post(ROUTE, content=picture(), headers=bearer).status_code == 201


def test_kinds_are_told_by_content():
    found = [sniff(data) for data in (picture("PNG"), picture("JPEG"), picture("WEBP"), SVG)]
    assert found == ["PNG", "JPEG", "WEBP", None]
