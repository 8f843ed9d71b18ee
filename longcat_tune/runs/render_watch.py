"""Who hears of renders on their way, and what a failed one costs: itself, or all that follow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from longcat_tune.errors import InterruptedRunError
from longcat_tune.runs.render_record import FailedRender

logger = logging.getLogger(__name__)


def _unseen(_name: str, _step: int, _path: Path) -> None:
    """Let a preview pass; its picture is there."""


def _log_smaller(name: str, what: str, reason: str) -> None:
    logger.warning("%s: out of memory (%s): %s", name, reason, what)


@dataclass(frozen=True, slots=True)
class RenderWatch:
    """Hears of renders.

    Attributes:
        on_failure: takes (name of the render, error), and the others go on; None: the error ends them all.
        on_smaller: takes (name of the render, what is done about it, why) when memory ran out.
        on_preview: takes (name of the render, denoising step, picture).
    """

    on_failure: Callable[[str, Exception], None] | None = None
    on_smaller: Callable[[str, str, str], None] = _log_smaller
    on_preview: Callable[[str, int, Path], None] = _unseen

    def attempt(self, name: str) -> Attempt:
        """Watch over the making of one render."""
        return Attempt(name, self.on_failure)


STRICT = RenderWatch()
"""The first failure ends all."""


class Attempt:
    """Ends the failure of its block where somebody takes it; a signal always passes.

    The one place that takes errors of any kind: whatever a render meets, days of training are worth more.

    Attributes:
        failures: the one failure, if there was one.

    Args:
        name: of the render.
        on_failure: takes it; None: nobody does.
    """

    def __init__(self, name: str, on_failure: Callable[[str, Exception], None] | None) -> None:
        self.name = name
        self.on_failure = on_failure
        self.failures: tuple[FailedRender, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.on_failure is None or not isinstance(error, Exception):
            return False
        if isinstance(error, InterruptedRunError):
            return False
        reason = str(error).partition("\n")[0] or type(error).__name__
        self.failures = (FailedRender(self.name, reason),)
        self.on_failure(self.name, error)
        return True
