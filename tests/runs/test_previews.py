"""A preview shows the picture that its latents hold, every so many steps; one that fails is the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from longcat_tune.data.demo import demo_scenes
from longcat_tune.data.demo_drawing import render
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.model.weights import resolve_checkpoint
from longcat_tune.runs.fitting import Decoder
from longcat_tune.runs.previews import Previews
from longcat_tune.runs.render_watch import RenderWatch
from longcat_tune.sampling.numbers import psnr
from longcat_tune.sampling.pictures import CELL_HEIGHT, strip_cell

CPU = torch.device("cpu")


def test_a_preview_is_the_picture_every_so_many_steps(tmp_path: Path) -> None:
    vae = VideoAutoencoder.load(resolve_checkpoint(None, flavour="tiny"), dtype=torch.float32, device=CPU)
    picture_HW3 = render(demo_scenes(1)[0], 96, 64, 1)[0]
    frame_CFHW = torch.from_numpy(picture_HW3).permute(2, 0, 1)[:, None]
    latents_BCTHW = vae.encode([frame_CFHW])[None].expand(-1, -1, 3, -1, -1)
    shown: list[int] = []
    watch = RenderWatch(on_preview=lambda _name, step, _path: shown.append(step))
    previews = Previews("a", 2, tmp_path, Decoder(lambda _: vae, CPU), watch)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for step in range(1, 6):
            previews.show(step, latents_BCTHW.clone())
    assert shown == [2, 4]
    strip = Image.open(tmp_path / "a.preview.png")
    assert strip.size == (3 * 96 * CELL_HEIGHT // 64, CELL_HEIGHT)
    # Latents that are not brought back from their normalised form would give a picture of other colours.
    whole = np.asarray(Image.fromarray(picture_HW3).resize((288, CELL_HEIGHT)))
    assert all(psnr(np.asarray(strip_cell(strip, 3, index)), whole) > 18 for index in range(3))


def test_the_first_preview_that_fails_is_the_last(tmp_path: Path) -> None:
    failures: list[str] = []

    def load(_: bool) -> VideoAutoencoder:
        raise ValueError("no decoder")

    watch = RenderWatch(on_failure=lambda name, _: failures.append(name))
    previews = Previews("a", 1, tmp_path, Decoder(load, CPU), watch)
    for step in (1, 2):
        previews.show(step, torch.zeros(1, 16, 1, 2, 2))
    assert failures == ["a preview"]
