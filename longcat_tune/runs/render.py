"""Render a set of cached requests to mp4s and a grid, with whatever adapter the model has right now.

Serves the command `validate` and the renders inside a run alike. A folder that already shows the same
requests of the same weights, made in the same way, is left as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import read_latents, read_text
from longcat_tune.data.video import write_mp4
from longcat_tune.files import write_atomically, write_json_atomically
from longcat_tune.log import progress
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.build import CheckpointFolders, compute_context
from longcat_tune.runs.cache import free_memory
from longcat_tune.runs.cache_jobs import CachedRequest
from longcat_tune.runs.precision import DTYPES
from longcat_tune.sampling.pictures import Frames, evenly_spaced, frame_grid, to_frames
from longcat_tune.sampling.render import render_latents
from longcat_tune.sampling.requests import EncodedRequest
from longcat_tune.training.trouble import explained_out_of_memory

logger = logging.getLogger(__name__)

GRID_NAME = "grid.png"
RECORD_NAME = "renders.json"

SHAPING_KEYS = (
    "flow_schedule_shift",
    "framerate",
    "base_model_precision",
    "mixed_precision",
    "attention_implementation",
    "vae_dtype",
)
"""Config keys that change a render and are not part of its request."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """What all renders of a run share.

    Attributes:
        model: the transformer; its adapter may change between two calls.
        vae_folder: checkpoint folder of the decoder, which is loaded for every set and freed again.
        vae_dtype: what it decodes in.
        shift: of the sigma schedule.
        fps: of the mp4s.
        device: where the model is.
        compute: entered around every denoising, such as autocast.
        settings: what else the pictures depend on, for the record; JSON values.
    """

    model: LongCatVideoTransformer
    vae_folder: Path
    vae_dtype: torch.dtype
    shift: float
    fps: float
    device: torch.device
    compute: Callable[[], AbstractContextManager[object]]
    settings: Mapping[str, Any]

    def render(self, requests: Sequence[CachedRequest], *, folder: Path, weights: str) -> tuple[Path, ...]:
        """Render every request into a folder.

        Args:
            requests: at least one.
            folder: gets one mp4 per request, a grid and a record of what was rendered.
            weights: identity of base and adapter.

        Returns:
            The files for people to look at: the mp4s, then the grid.

        Raises:
            UserError: a cache file is damaged or the folder cannot be written to.
        """
        paths = [folder / f"{cached.request.file_stem}.mp4" for cached in requests]
        shown = (*paths, folder / GRID_NAME)
        record = _record(requests, weights=weights, settings=self.settings)
        if all(path.is_file() for path in shown) and _same_record(folder, record):
            logger.info("%s already shows these renders of these weights", folder)
            return shown
        # A record must not outlive its videos: a render that is broken off leaves none.
        (folder / RECORD_NAME).unlink(missing_ok=True)
        with explained_out_of_memory("rendering"):
            rows = self._write_videos(requests, paths)
        _save_png(frame_grid(rows), folder / GRID_NAME)
        # Last: it says that the others are complete.
        write_json_atomically(folder / RECORD_NAME, record)
        return shown

    def _write_videos(
        self, requests: Sequence[CachedRequest], paths: Sequence[Path]
    ) -> list[tuple[str, Frames]]:
        latents = self._denoise(requests)
        vae = VideoAutoencoder.load(self.vae_folder, dtype=self.vae_dtype, device=self.device)
        rows: list[tuple[str, Frames]] = []
        for cached, path, latents_CTHW in zip(requests, paths, latents, strict=True):
            frames_FHW3 = to_frames(vae.decode(latents_CTHW))
            write_mp4(path, frames_FHW3, self.fps)
            # A few frames only: a 480p render of 93 frames is 111 MB.
            shown = evenly_spaced(frames_FHW3)
            rows.append((f"{cached.request.file_stem}: {cached.request.prompt}", shown))
        del vae
        free_memory(self.device)
        return rows

    def _denoise(self, requests: Sequence[CachedRequest]) -> list[Tensor]:
        was_training = self.model.training
        self.model.eval()
        try:
            with progress("Rendering", sum(c.request.num_steps for c in requests)) as bar, self.compute():
                return [
                    render_latents(
                        self.model,
                        _encoded(cached),
                        channels=self.model.in_channels,
                        shift=self.shift,
                        device=self.device,
                        on_step=bar.advance,
                    )
                    for cached in requests
                ]
        finally:
            self.model.train(was_training)


def build_renderer(
    config: RunConfig,
    checkpoint: CheckpointFolders,
    model: LongCatVideoTransformer,
    *,
    device: torch.device,
) -> Renderer:
    """Put a run's renderer together."""
    flat = config.flat()
    return Renderer(
        model=model,
        vae_folder=checkpoint.vae,
        vae_dtype=DTYPES[config.model.vae_dtype],
        shift=config.flow.flow_schedule_shift,
        fps=config.data.framerate,
        device=device,
        compute=compute_context(config.model, device),
        settings={key: flat[key] for key in SHAPING_KEYS} | {"vae": str(checkpoint.vae)},
    )


def weights_identity(base: str, adapter: Mapping[str, Tensor]) -> str:
    """Name a base by its place and an adapter by content, so that the same render is not made twice."""
    digest = hashlib.blake2b(base.encode(), digest_size=16)
    for name in sorted(adapter):
        digest.update(name.encode())
        digest.update(adapter[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoded(cached: CachedRequest) -> EncodedRequest:
    return EncodedRequest(
        request=cached.request,
        prompt=read_text(cached.prompt_path),
        negative=read_text(cached.negative_path),
        cond_CKHW=None if cached.cond_path is None else read_latents(cached.cond_path),
    )


def _record(
    requests: Sequence[CachedRequest], *, weights: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    # Cache names are content keys: they stand for the prompt's encoding and the start image's pixels.
    renders = [
        dataclasses.asdict(cached.request)
        | {"prompt_key": cached.prompt_path.name, "start_key": cached.cond_path and cached.cond_path.name}
        for cached in requests
    ]
    content = {"weights": weights, "settings": dict(settings), "renders": renders}
    record: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return record


def _same_record(folder: Path, record: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8")) == record)
    except (OSError, ValueError):
        return False


def _save_png(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda part: picture.save(part, format="PNG"))
