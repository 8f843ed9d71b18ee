"""Images as Pillow writes them: turned, transparent, 16-bit, broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longcat_tune.data.images import read_image
from longcat_tune.data.refusals import UnusableFileError
from tests.media_builders import write_image


def message_of(path: Path) -> str:
    with pytest.raises(UnusableFileError) as caught:
        read_image(path)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_image_is_one_frame(tmp_path, extension):
    frames_FHW3 = read_image(write_image(tmp_path / f"image{extension}", size=(40, 30)))
    assert (frames_FHW3.shape, frames_FHW3.dtype) == ((1, 30, 40, 3), np.uint8)
    assert np.abs(frames_FHW3[0, 15, 5].astype(int) - (200, 0, 0)).max() < 10


def test_exif_orientation_is_applied(tmp_path):
    # 6: the camera was held so that the stored left edge is the top.
    frames_FHW3 = read_image(write_image(tmp_path / "image.png", size=(40, 30), orientation=6))
    assert frames_FHW3.shape == (1, 40, 30, 3)
    assert frames_FHW3[0, 5, 15].tolist() == [200, 0, 0]
    assert frames_FHW3[0, 35, 15].tolist() == [0, 200, 0]


def test_transparency_shows_white(tmp_path):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:, 4:] = (10, 20, 30, 255)
    Image.fromarray(picture).save(tmp_path / "image.png")
    frames_FHW3 = read_image(tmp_path / "image.png")
    assert frames_FHW3[0, 0, 0].tolist() == [255, 255, 255]
    assert frames_FHW3[0, 0, 7].tolist() == [10, 20, 30]


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8040, np.uint16)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[0, 0, 0].tolist() == [0x80, 0x80, 0x80]


def test_palette_and_grey_become_rgb(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "grey.png")[0, 0, 0].tolist() == [77, 77, 77]
    assert read_image(tmp_path / "palette.png").shape == (1, 4, 4, 3)


def test_broken_images_are_refused(tmp_path):
    remedy = "replace the file or take it out of the folder"
    junk = tmp_path / "junk.png"
    junk.write_text("no image")
    assert message_of(junk) == f"junk.png cannot be read as an image (cannot identify image file); {remedy}"
    torn = write_image(tmp_path / "torn.png", size=(400, 300))
    torn.write_bytes(torn.read_bytes()[:-300])
    assert message_of(torn) == f"torn.png cannot be read as an image (image file is truncated); {remedy}"
    assert message_of(tmp_path / "gone.png") == (
        f"gone.png cannot be read as an image (No such file or directory); {remedy}"
    )
