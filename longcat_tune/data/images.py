"""Still images as clips of one frame: upright, opaque, 8-bit RGB. Knows neither datasets nor buckets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from longcat_tune.data.refusals import REPLACE, UnusableFileError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

BACKGROUND = "white"
"""What shows through transparent pixels."""


def is_image(path: Path) -> bool:
    """Whether the name is that of an image."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read frames_FHW3 of one frame, turned as its EXIF orientation says, transparency flattened.

    Raises:
        UnusableFileError: it is no image, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            picture_HW3 = np.array(_opaque(ImageOps.exif_transpose(image)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"cannot be read as an image ({_words(error, path)})"
        raise UnusableFileError(path, reason, REPLACE) from error
    return picture_HW3[None]


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16-bit values off at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    flat = Image.new("RGBA", image.size, BACKGROUND)
    flat.alpha_composite(image.convert("RGBA"))
    return flat.convert("RGB")


def _words(error: Exception, path: Path) -> str:
    """What Pillow or the system says, without the path that the message has already."""
    system = error.strerror if isinstance(error, OSError) else None
    return system or str(error).replace(f" {str(path)!r}", "")
