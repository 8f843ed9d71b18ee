"""Folders of renders as a run leaves them, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from longcat_tune.data.video import write_mp4
from longcat_tune.runs.render_record import FailedRender, RenderRecord, ShownVideo


def make_set(
    folder: Path, brightness: dict[str, int], *, failures: tuple[FailedRender, ...] = (), frames: int = 9
) -> RenderRecord:
    """Plain videos of a brightness per request; the request's name is its key, too."""
    videos = []
    for name, value in brightness.items():
        picture = np.full((frames, 48, 80, 3), value, np.uint8)
        picture[:, 8:20, 8:40] = 255 - value
        write_mp4(folder / f"{name}.mp4", picture, 15)
        Image.new("RGB", (5 * 320, 192), (value,) * 3).save(folder / f"{name}.png")
        videos.append(
            ShownVideo(
                key=name,
                name=name,
                prompt=f"A prompt </script> of {name}, 雨",
                file=f"{name}.mp4",
                strip=f"{name}.png",
                cells=5,
                width=80,
                height=48,
                num_frames=frames,
                fps=15,
                details=("80 wide x 48 high (landscape)", "2 steps"),
                numbers={"sharpness": 1.0},
                seconds=1.5,
            )
        )
    record = RenderRecord({"weights": str(brightness)}, tuple(videos), failures)
    record.write(folder)
    return record
