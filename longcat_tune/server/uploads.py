"""Start frames that a browser sends: judged by content, and kept only as pictures that we wrote ourselves.

Nothing is on disk before the whole picture was decoded and encoded again. Knows nothing of previews.
"""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from secrets import token_hex

import anyio
from anyio import to_thread
from PIL import Image, ImageOps

from longcat_tune.files import write_atomically
from longcat_tune.server.replies import Refusal
from longcat_tune.server.upload_formats import PictureKind, is_whole, sniff
from longcat_tune.server.workspace import Workspace

MOST_BYTES = 20 * 1000 * 1000
MOST_PIXELS = 64 * 1000 * 1000
LEAST_SIDE = 16
MOST_ASPECT = 8.0
"""Longer side over shorter: a strip would be blown up to fill a frame."""

SECONDS = 120.0
"""Most that an upload may take to arrive."""

KEPT = 50
"""Uploads that are kept for a form that is still being filled in; previews have copies of their own."""

BACKGROUND = "white"
"""What shows through transparent pixels; the command line does the same."""

NAME = re.compile(r"[0-9a-f]{32}")

_DECODING = anyio.CapacityLimiter(1)
"""A picture of 64 megapixels takes about half a gigabyte while it is decoded: one at a time."""

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged or malicious files."""


async def receive(stream: AsyncIterator[bytes], *, stated: str | None) -> bytes:
    """Take in an upload, no more than it may have.

    Args:
        stream: the body in pieces.
        stated: its size in bytes as the browser says, if it does.

    Raises:
        Refusal: it is too large, or takes too long.
    """
    if stated is not None and stated.isdecimal() and int(stated[:20]) > MOST_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(SECONDS):
            return await _joined(stream)
    except TimeoutError as error:
        raise Refusal(408, "preview.upload_timeout", seconds=int(SECONDS)) from error


async def _joined(pieces: AsyncIterator[bytes]) -> bytes:
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > MOST_BYTES:
            raise _too_large()
    return bytes(data)


def _too_large() -> Refusal:
    return Refusal(413, "preview.upload_too_large", limit=MOST_BYTES // 1_000_000)


async def keep(data: bytes, workspace: Workspace) -> str:
    """Judge a picture, write it anew as a PNG and forget the oldest ones.

    Args:
        data: of the upload.
        workspace: gets the file.

    Returns:
        Its name, for `uploaded`.

    Raises:
        Refusal: it is no whole picture of a known kind, or too large or too small a one.
        UserError: the folder cannot be written to or the disk is full.
    """
    return await to_thread.run_sync(_keep, data, _folder(workspace), limiter=_DECODING)


def uploaded(workspace: Workspace, name: str) -> Path:
    """The file of an upload.

    Args:
        workspace: has the file.
        name: from `keep`.

    Raises:
        Refusal: there is none of that name, or none any more.
    """
    path = _folder(workspace) / f"{name}.png"
    if NAME.fullmatch(name) is None or path.is_symlink() or not path.is_file():
        raise Refusal(404, "preview.no_upload")
    return path


def reencode(data: bytes) -> bytes:
    """The picture as a PNG without anything else that was in the file: upright, opaque, 8-bit RGB.

    Raises:
        Refusal: as `keep`.
    """
    kind = sniff(data)
    if kind is None:
        raise Refusal(415, "preview.upload_no_picture")
    if not is_whole(data, kind):
        raise Refusal(422, "preview.upload_not_whole", kind=kind)
    picture = _decode(data, kind)
    # The writer would carry profiles and texts over.
    picture.info.clear()
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _decode(data: bytes, kind: PictureKind) -> Image.Image:
    try:
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            _require_size(image)
            return _opaque(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except _DAMAGED as error:
        raise Refusal(422, "preview.upload_damaged", kind=kind) from error


def _require_size(image: Image.Image) -> None:
    """Judge the size that the header states, before anything is decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _too_many_pixels()
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_ASPECT * min(width, height):
        raise Refusal(
            422, "preview.upload_shape", width=width, height=height, side=LEAST_SIDE, aspect=int(MOST_ASPECT)
        )


def _too_many_pixels() -> Refusal:
    return Refusal(413, "preview.upload_too_many_pixels", limit=MOST_PIXELS // 1_000_000)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16-bit values off at 255 instead of scaling them.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    flat = Image.new("RGBA", image.size, BACKGROUND)
    flat.alpha_composite(image.convert("RGBA"))
    return flat.convert("RGB")


def _keep(data: bytes, folder: Path) -> str:
    picture = reencode(data)
    name = token_hex(16)
    write_atomically(folder / f"{name}.png", lambda part: part.write_bytes(picture))
    kept = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    for path in kept[:-KEPT]:
        path.unlink(missing_ok=True)
    return name


def _folder(workspace: Workspace) -> Path:
    return workspace.state / "uploads"
