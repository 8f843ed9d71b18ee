"""Tells by content what picture a few bytes are, and where it ends; a name or a stated type is never asked.

A file that goes on after its picture is two files in one, and not `is_whole`: what comes next could be a page
or an archive to whoever reads it from there. Decodes nothing.
"""

from __future__ import annotations

import re
from typing import Literal

PictureKind = Literal["PNG", "JPEG", "WEBP"]

MOST_PICTURES, MOST_SEGMENTS = 16, 10_000
"""In one JPEG file: far more than any camera writes, and few enough to look at in no time."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_START_OF_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_NO_ZERO = re.compile(rb"[^\0]")
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""After the start of a scan; ff 00 and restart markers are part of it."""


def sniff(data: bytes) -> PictureKind | None:
    """Name the kind that the first bytes are of; None for everything else, SVG and GIF included."""
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(_JPEG):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def is_whole(data: bytes, kind: PictureKind) -> bool:
    """Whether a picture reaches its end and nothing foreign comes after it.

    Args:
        data: the file.
        kind: from `sniff`.
    """
    if kind == "JPEG":
        return _is_whole_jpeg(data)
    end = _png_end(data) if kind == "PNG" else _webp_end(data)
    return end == len(data)


def _png_end(data: bytes) -> int | None:
    at = len(_PNG)
    while at + 12 <= len(data):
        name = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND":
            return at
    return None


def _webp_end(data: bytes) -> int:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2


def _is_whole_jpeg(data: bytes) -> bool:
    """Cameras put further pictures after the first one, and zeros between them."""
    at = 0
    for _ in range(MOST_PICTURES):
        end = _jpeg_end(data, at)
        if end is None:
            return False
        at = _first_but_zero(data, end)
        if at == len(data):
            return True
        if not data.startswith(_JPEG, at):
            return False
    return False


def _first_but_zero(data: bytes, at: int) -> int:
    found = _NO_ZERO.search(data, at)
    return found.start() if found is not None else len(data)


def _jpeg_end(data: bytes, start: int) -> int | None:
    """Where the picture that begins at start ends; None when it does not."""
    at = start + 2
    for _ in range(MOST_SEGMENTS):
        if at + 2 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == _END:
            return at + 2
        if marker in _WITHOUT_LENGTH:
            at += 2
        elif marker == _FILL:
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            found = _NEXT_MARKER.search(data, at)
            at = found.end() - 2 if found is not None else len(data)
    return None
