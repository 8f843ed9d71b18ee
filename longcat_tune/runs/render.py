"""Render a set of cached requests to mp4s and a grid, with whatever adapter the model has right now.

Serves the command `validate` and the renders inside a run alike. A folder that already shows the same
requests of the same weights, made in the same way, is left as it is; others are added to it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longcat_tune.config.values import FrameSize
from longcat_tune.data.cache import LatentJob
from longcat_tune.data.video import write_mp4
from longcat_tune.errors import DataError
from longcat_tune.log import Bar, progress
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.vae import VideoAutoencoder
from longcat_tune.runs.cache_jobs import CachedRequest
from longcat_tune.runs.fitting import Decoder, Fitting
from longcat_tune.runs.gallery import read_strip, save_png
from longcat_tune.runs.previews import Previews
from longcat_tune.runs.refinement import Refiner
from longcat_tune.runs.render_record import (
    GRID_NAME,
    RECORD_NAME,
    FailedRender,
    RenderRecord,
    ShownVideo,
    comparison_key,
    read_record,
    wanted_renders,
)
from longcat_tune.runs.render_request import Rendered, RequestRenderer
from longcat_tune.runs.render_watch import STRICT, RenderWatch
from longcat_tune.sampling.denoise import OnStep
from longcat_tune.sampling.numbers import psnr, sharpness, temporal_consistency
from longcat_tune.sampling.pictures import Frames, evenly_spaced, frame_grid, frame_strip
from longcat_tune.sampling.refine import FRAMES_PER_FRAME
from longcat_tune.sampling.render import count_steps
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.training.trouble import free_memory
from longcat_tune.types import Bucket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Renderer:
    """What all renders of a run share.

    Attributes:
        model: the transformer; its adapter may change between two calls.
        load_vae: loads the decoder, anew for every set, so that training has its memory; True: in tiles.
        shift: of the sigma schedule.
        fps: of the mp4s.
        device: where the model is.
        compute: entered around every denoising, such as autocast.
        read_start: gives chunks of frames_CFHW uint8 of a start image or clip, the first frame first.
        settings: what else the pictures depend on, for the record; JSON values.
        fitting: remembers from set to set which sizes fit.
        lend_lora: entered around every denoising: lends the model what works in renders only.
        refiner: makes finished videos larger and smoother; None: they stay as they are.
        preview_every: denoising steps from one preview to the next; None: there are none.
    """

    model: LongCatVideoTransformer
    load_vae: Callable[[bool], VideoAutoencoder]
    shift: float
    fps: float
    device: torch.device
    compute: Callable[[], AbstractContextManager[object]]
    read_start: Callable[[LatentJob], Iterator[Tensor]]
    settings: Mapping[str, Any]
    fitting: Fitting
    lend_lora: Callable[[], AbstractContextManager[None]] = nullcontext
    refiner: Refiner | None = None
    preview_every: int | None = None

    def render(
        self, requests: Sequence[CachedRequest], *, folder: Path, weights: str, watch: RenderWatch = STRICT
    ) -> RenderRecord:
        """Render every request into a folder.

        Args:
            requests: at least one.
            folder: gets one mp4 and one strip of frames per request, a grid and a record of it all. Renders
                of other requests of the same weights stay in it; those of other weights are deleted.
            weights: identity of base and adapter.
            watch: hears of what goes wrong, and says whether the others are rendered then.

        Returns:
            What the folder holds now, and what could not be rendered.

        Raises:
            UserError: a cache file is damaged or the folder cannot be written to.
            DeviceError: out of memory, however short the render.
        """
        wanted = wanted_renders(requests, weights=weights, settings=self.settings)
        before = read_record(folder) or RenderRecord({}, ())
        keys = {comparison_key(cached, self.settings) for cached in requests}
        if before.is_done(folder, weights, keys):
            logger.info("%s already shows these renders of these weights", folder)
            return before
        videos = list(before.besides(folder, weights, [cached.request.file_stem for cached in requests]))
        # A record must not outlive its videos: a render that is broken off leaves the others' at most.
        (folder / RECORD_NAME).unlink(missing_ok=True)
        if videos:
            RenderRecord(wanted, tuple(videos)).write(folder)
        rows = [(f"{video.stem}: {video.prompt}", read_strip(folder, video)) for video in videos]
        failures: list[FailedRender] = []
        with self._working(requests) as (renderer, bar):
            for cached in requests:
                name = cached.request.file_stem
                with watch.attempt(name) as attempt:
                    began = time.monotonic()
                    rendered = renderer.render(
                        cached,
                        on_step=self._on_step(renderer, name, folder, watch, bar),
                        on_smaller=partial(watch.on_smaller, name),
                    )
                    video = self._video(cached, rendered, seconds=time.monotonic() - began)
                    frames_FHW3 = rendered.frames_FHW3
                    # A few frames only: a 480p render of 93 frames is 111 MB.
                    strip = frame_strip(frames_FHW3[evenly_spaced(len(frames_FHW3))])
                    write_mp4(folder / video.file, frames_FHW3, video.fps)
                    save_png(strip, folder / video.strip)
                    rows.append((f"{name}: {cached.request.prompt}", strip))
                    videos.append(video)
                failures += attempt.failures
        if rows:
            save_png(frame_grid(rows), folder / GRID_NAME)
        else:
            (folder / GRID_NAME).unlink(missing_ok=True)
        record = RenderRecord(wanted, tuple(videos), tuple(failures))
        record.remove_others(folder, before.videos)
        # Last: it says that the others are complete.
        record.write(folder)
        return record

    def probe(self, requests: Sequence[CachedRequest], *, watch: RenderWatch) -> None:
        """Render one step of every kind of request and keep nothing, so that what cannot work is known early.

        Args:
            requests: at least one.
            watch: hears of what goes wrong.
        """
        kinds = {_kind(cached.request): _shortened(cached) for cached in requests}
        with self._working(tuple(kinds.values())) as (renderer, bar):
            for cached in kinds.values():
                name = cached.request.file_stem
                with watch.attempt(name):
                    renderer.render(
                        cached,
                        on_step=lambda *_: bar.advance(),
                        on_smaller=partial(watch.on_smaller, name),
                    )

    @contextmanager
    def _working(self, requests: Sequence[CachedRequest]) -> Iterator[tuple[RequestRenderer, Bar]]:
        """Lend the model and a decoder for one set, and leave the model as it was."""
        was_training = self.model.training
        self.model.eval()
        renderer = RequestRenderer(
            model=self.model,
            decoder=Decoder(self.load_vae, self.device),
            fitting=self.fitting,
            shift=self.shift,
            device=self.device,
            compute=self.compute,
            lend_lora=self.lend_lora,
            refiner=self.refiner,
        )
        try:
            with progress("Rendering", self._count_steps(requests)) as bar:
                yield renderer, bar
        finally:
            self.model.train(was_training)
            del renderer
            free_memory(self.device)

    def _on_step(
        self, renderer: RequestRenderer, name: str, folder: Path, watch: RenderWatch, bar: Bar
    ) -> OnStep:
        """Advance the bar, and show a preview now and then."""
        previews: Previews | None = None
        if self.preview_every is not None:
            previews = Previews(name, self.preview_every, folder, renderer.decoder, watch)

        def on_step(step: int, _: Tensor, clean_BCTHW: Tensor) -> None:
            bar.advance()
            if previews is not None:
                previews.show(step, clean_BCTHW)

        return on_step

    def _count_steps(self, requests: Sequence[CachedRequest]) -> int:
        more = self.refiner.num_steps if self.refiner is not None and self.fitting.refines else 0
        return sum(count_steps(cached.request, shift=self.shift) + more for cached in requests)

    def _video(self, cached: CachedRequest, rendered: Rendered, *, seconds: float) -> ShownVideo:
        request, frames_FHW3 = cached.request, rendered.frames_FHW3
        count, height, width, _ = frames_FHW3.shape
        fps = self.fps * FRAMES_PER_FRAME if rendered.refined else self.fps
        return ShownVideo(
            key=comparison_key(cached, self.settings),
            name=request.name,
            prompt=request.prompt,
            file=f"{request.file_stem}.mp4",
            strip=f"{request.file_stem}.png",
            cells=len(evenly_spaced(count)),
            width=width,
            height=height,
            num_frames=count,
            fps=fps,
            details=_details(request),
            numbers=self._numbers(cached, frames_FHW3),
            seconds=seconds,
        )

    def _numbers(self, cached: CachedRequest, frames_FHW3: Frames) -> dict[str, float]:
        numbers = {"sharpness": sharpness(frames_FHW3)}
        consistency = temporal_consistency(frames_FHW3)
        if consistency is not None:
            numbers["temporal_consistency"] = consistency
        if cached.start is not None:
            # The latents are cached: a start image that has gone since costs a number and no render.
            with suppress(DataError):
                height, width = frames_FHW3.shape[1:3]
                bucket = replace(cached.start.bucket, width=width, height=height)
                first_CFHW = next(self.read_start(replace(cached.start, bucket=bucket)))
                wanted_HW3 = first_CFHW[:, 0].permute(1, 2, 0).numpy()
                numbers["first_frame_psnr"] = psnr(frames_FHW3[0], wanted_HW3)
        return numbers


def weights_identity(base: str, adapter: Mapping[str, Tensor]) -> str:
    """Name a base by its place and an adapter by content, so that the same render is not made twice."""
    digest = hashlib.blake2b(base.encode(), digest_size=16)
    for name in sorted(adapter):
        digest.update(name.encode())
        digest.update(adapter[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _kind(request: RenderRequest) -> tuple[Bucket, bool, int, bool]:
    """What decides how much memory a render needs."""
    given = 0 if request.start_image is None else request.num_start_frames
    return request.size, request.guidance > 1, given, request.num_segments > 1


def _shortened(cached: CachedRequest) -> CachedRequest:
    # The distilled grid, because the other one takes more steps for a continuation.
    segments = min(2, cached.request.num_segments)
    request = replace(cached.request, num_steps=1, distilled=True, num_segments=segments)
    return replace(cached, request=request)


def _details(request: RenderRequest) -> tuple[str, ...]:
    """The request in short texts, for people."""
    details = [
        FrameSize(request.size.width, request.size.height).described,
        f"{request.num_steps} steps",
        f"guidance {request.guidance:g}",
        f"seed {request.seed}",
    ]
    if request.negative_prompt:
        details.append(f"not: {request.negative_prompt}")
    if request.start_image is not None:
        frames = f"{request.num_start_frames} frames of " if request.num_start_frames > 1 else ""
        details.append(f"starts from {frames}{request.start_image.name}")
    if request.num_segments > 1:
        details.append(f"{request.num_segments} segments")
    return tuple(details)
