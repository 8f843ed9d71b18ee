"""The renders of a training run: a probe before the first step, a folder per step, and the page of them all.

Whatever goes wrong with a render is told in events.jsonl and costs the training nothing.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from longcat_tune.config.run import RunConfig
from longcat_tune.model.lora import lora_state
from longcat_tune.runs.cache_jobs import CachedRequest
from longcat_tune.runs.gallery import AVERAGED, PAGE_NAME, write_gallery
from longcat_tune.runs.parts import RunParts
from longcat_tune.runs.render import Renderer, weights_identity
from longcat_tune.runs.render_watch import RenderWatch
from longcat_tune.training.interfaces import Abandoning
from longcat_tune.training.metrics import EventLog

logger = logging.getLogger(__name__)

FOLDER = "validation"


@dataclass(frozen=True, slots=True)
class StepRenders:
    """Renders with the weights of the moment; in the first process of a run only.

    Attributes:
        config: the run.
        base: identity of the frozen base.
        requests: what is rendered.
        parts: what is trained.
        renderer: makes the renders.
        events: hears of everything.
    """

    config: RunConfig
    base: str
    requests: tuple[CachedRequest, ...]
    parts: RunParts
    renderer: Renderer
    events: EventLog

    def probe(self, step: int) -> None:
        """Try every kind of request, unless the renders before the first step do that anyway."""
        validation = self.config.validation
        starts_with_renders = validation.validation_on_startup and step == 0
        if not self.requests or starts_with_renders or not validation.renders_in_training:
            return
        watch = self._watch(step)
        with watch.attempt("probe"):
            self.renderer.probe(self.requests, watch=watch)

    def validate(self, step: int, abandoning: Abandoning) -> None:
        """Render all requests with the adapter as it is, with its average, or with both.

        Args:
            step: finished ones.
            abandoning: entered where a signal may break it off.

        Raises:
            KeyboardInterrupt: one did.
        """
        output_dir, watch = self.config.output.output_dir, self._watch(step)
        root = output_dir / FOLDER
        folder = root / f"step_{step:06d}"
        shown: list[Path] = []
        numbers: dict[str, dict[str, float]] = {}
        for place, weights in self._rendered_weights(folder):
            # Broken off inside only: half of the average put in place, or taken back, would be saved.
            with watch.attempt(place.relative_to(root).as_posix()), weights, abandoning():
                identity = weights_identity(self.base, lora_state(self.parts.model))
                record = self.renderer.render(self.requests, folder=place, weights=identity, watch=watch)
                shown += record.paths(place)
                for video in record.videos:
                    numbers[(place / video.file).relative_to(output_dir).as_posix()] = dict(video.numbers)
        with watch.attempt(PAGE_NAME):
            write_gallery(root, folder)
        files = [path.relative_to(output_dir).as_posix() for path in shown]
        self.events.write("validation", step=step, files=files, numbers=numbers)

    def _rendered_weights(self, folder: Path) -> list[tuple[Path, AbstractContextManager[None]]]:
        """Where renders go, and what puts their weights in place."""
        ema, choice = self.parts.loop.ema, self.config.training.ema_validation
        if ema is None or choice == "none":
            return [(folder, nullcontext())]
        if choice == "ema_only":
            return [(folder / AVERAGED, ema.swapped_in())]
        return [(folder, nullcontext()), (folder / AVERAGED, ema.swapped_in())]

    def _watch(self, step: int) -> RenderWatch:
        return RenderWatch(
            partial(self._failed, step), partial(self._smaller, step), partial(self._preview, step)
        )

    def _failed(self, step: int, name: str, error: Exception) -> None:
        logger.warning("%s could not be rendered at step %d, training goes on: %s", name, step, error)
        self.events.write(
            "render_failed",
            step=step,
            render=name,
            kind=type(error).__name__,
            message=str(error),
            traceback="".join(traceback.format_exception(error)),
        )

    def _preview(self, step: int, name: str, denoising_step: int, path: Path) -> None:
        file = path.relative_to(self.config.output.output_dir).as_posix()
        self.events.write("preview", step=step, render=name, denoising_step=denoising_step, file=file)

    def _smaller(self, step: int, name: str, change: str, reason: str) -> None:
        logger.warning("%s, step %d: out of memory (%s): %s", name, step, reason, change)
        self.events.write("render_smaller", step=step, render=name, change=change, reason=reason)
