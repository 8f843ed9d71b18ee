"""What a run has come to, folded from its events one by one: curves of bounded length, and all that is rare.

A step that comes again, as after a run that was killed, takes the place of what came after it the first time.
Knows neither files nor requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LIMIT = 2000
"""Points of a curve at most: more than a screen has columns."""
RECENT = 10
"""Events of losses by noise level that are taken together."""
PACE = 100
"""Steps whose time tells how long the rest will take."""
NOTICES = 50
"""Of what went wrong without ending the run."""

Merge = Literal["mean", "max", "last"]
COLUMNS: Mapping[str, Merge] = {
    "loss": "mean",
    "learning_rate": "last",
    "grad_norm": "max",
    "sigma_mean": "mean",
    "seconds": "mean",
    "memory_gib": "max",
    "epoch": "last",
    "time": "last",
}
"""Fields of a step, and how those of neighbouring steps become one point."""

KEPT_EVENTS = ("evaluation", "validation", "checkpoint")
"""All of them, by step."""
PICTURES = (".png", ".jpg", ".webp")
NOTICE_EVENTS = {"step_skipped", "render_failed", "render_smaller"}


@dataclass(slots=True)
class Point:
    """One or more neighbouring steps.

    Attributes:
        step: the last of them.
        count: how many.
        values: one per column; None where no step has a number.
    """

    step: int
    count: int
    values: list[float | None]

    def take_in(self, later: Point) -> None:
        """Become one with the point after it."""
        for place, merge in enumerate(COLUMNS.values()):
            mine, other = self.values[place], later.values[place]
            if mine is None or other is None or merge == "last":
                self.values[place] = mine if other is None else other
            elif merge == "max":
                self.values[place] = max(mine, other)
            else:
                self.values[place] = mine + (other - mine) * later.count / (self.count + later.count)
        self.step = later.step
        self.count += later.count


class Curves:
    """Points of all columns; when there are too many, neighbours are taken together.

    Args:
        limit: points that there are at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._stride = 1
        self.points: list[Point] = []

    def add(self, event: Mapping[str, Any], step: int) -> None:
        """Take in a step."""
        self._append(Point(step, 1, [_number(event.get(name)) for name in COLUMNS]))
        while len(self.points) > self._limit:
            self._stride *= 2
            points, self.points = self.points, []
            for point in points:
                self._append(point)

    def rewind(self, step: int) -> None:
        """Forget all after a step; a point that reaches beyond it goes too."""
        while self.points and self.points[-1].step > step:
            self.points.pop()

    def _append(self, point: Point) -> None:
        last = self.points[-1] if self.points else None
        if last is not None and last.step // self._stride == point.step // self._stride:
            last.take_in(point)
        else:
            self.points.append(point)

    def as_json(self) -> dict[str, list[Any]]:
        """A list per column, `step` too."""
        columns: dict[str, list[Any]] = {"step": [point.step for point in self.points]}
        for place, name in enumerate(COLUMNS):
            columns[name] = [point.values[place] for point in self.points]
        return columns


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in few words.

    Attributes:
        step: the last one heard of.
        max_steps: where the run ends; None: unknown yet.
        seconds_left: from that step to the end; None: unknown.
        started: fields of the latest run_start; empty: never started.
        ended: fields of its run_end; None: there was none yet.
        last: fields of the latest step, and the latest loss; empty: there was none yet.
        problems: what ended it, as the user saw it.
        picture: the latest that shows what was learned, relative to the output folder; None: there is none.
    """

    step: int
    max_steps: int | None
    seconds_left: float | None
    started: Mapping[str, Any]
    ended: Mapping[str, Any] | None
    last: Mapping[str, Any]
    problems: tuple[str, ...]
    picture: str | None

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return min(1.0, self.step / self.max_steps) if self.max_steps else 0.0


class History:
    """All that pages show of a run.

    Args:
        limit: points of a curve at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._step = 0
        self._started: dict[str, Any] = {}
        self._ended: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}
        self._problems: list[dict[str, Any]] = []
        self._notices: deque[dict[str, Any]] = deque(maxlen=NOTICES)
        self._preview: dict[str, Any] | None = None
        self._kept: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in KEPT_EVENTS}
        self._first_bands: dict[str, Any] | None = None
        self._bands: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE)
        self._curves = Curves(limit)

    def add_all(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in events, in the order in which they were written."""
        for event in events:
            self._add(dict(event))

    def summary(self) -> Summary:
        """What a list of runs shows."""
        return Summary(
            step=self._step,
            max_steps=self._max_steps,
            seconds_left=self._seconds_left,
            started=self._started,
            ended=self._ended,
            last=self._last,
            problems=tuple(str(event.get("message", "")) for event in self._problems),
            picture=self._picture,
        )

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "step": self._step,
            "max_steps": self._max_steps,
            "seconds_left": self._seconds_left,
            "started": self._started,
            "ended": self._ended,
            "last": self._last,
            "columns": self._curves.as_json(),
            "bands": {"first": self._first_bands, "recent": list(self._bands)},
            "problems": list(self._problems),
            "notices": list(self._notices),
            "preview": self._preview,
            **{f"{name}s": list(kept.values()) for name, kept in self._kept.items()},
        }

    @property
    def _max_steps(self) -> int | None:
        value = _number(self._started.get("max_steps"))
        return None if value is None else int(value)

    @property
    def _seconds_left(self) -> float | None:
        """From the latest step to the last one, at the pace of late, renders and all."""
        if self._max_steps is None or len(self._pace) < 2:
            return None
        (first, begun), (last, now) = self._pace[0], self._pace[-1]
        return max(0.0, (self._max_steps - last) * (now - begun) / (last - first))

    @property
    def _picture(self) -> str | None:
        validations = self._kept["validation"]
        for step in sorted(validations, reverse=True):
            pictures = [name for name in _names(validations[step].get("files")) if name.endswith(PICTURES)]
            if pictures:
                return pictures[-1]
        return None

    def _add(self, event: dict[str, Any]) -> None:
        event.pop("traceback", None)
        name, step = event["event"], _number(event.get("step"))
        if step is not None and name != "run_end":
            if step < self._step:
                self._rewind(int(step))
            self._step = int(step)
        if name == "step" and step is not None:
            self._add_step(event)
        elif name in {"run_start", "run_end"}:
            self._add_end(name, event)
        elif name in KEPT_EVENTS and step is not None:
            self._kept[name][self._step] = event
            self._preview = None if name == "validation" else self._preview
        elif name == "sigma_bands":
            self._first_bands = self._first_bands or event
            self._bands.append(event)
        elif name == "preview":
            self._preview = event
        elif name == "error":
            self._problems.append(event)
        elif name in NOTICE_EVENTS:
            self._notices.append(event)

    def _add_step(self, event: dict[str, Any]) -> None:
        self._curves.rewind(self._step - 1)
        self._curves.add(event, self._step)
        # A step on regularisation data alone has no loss to show.
        loss = self._last.get("loss") if event.get("loss") is None else event["loss"]
        self._last = {**event, "loss": loss}
        time = _number(event.get("time"))
        if time is not None and (not self._pace or self._pace[-1][0] < self._step):
            self._pace.append((self._step, time))

    def _add_end(self, name: str, event: dict[str, Any]) -> None:
        self._preview = None
        if name == "run_end":
            self._ended = event
            return
        self._started, self._ended = event, None
        self._problems.clear()
        self._notices.clear()
        self._pace.clear()

    def _rewind(self, step: int) -> None:
        self._curves.rewind(step)
        for kept in self._kept.values():
            for later in [one for one in kept if one > step]:
                del kept[later]
        bands = [event for event in self._bands if (_number(event.get("step")) or 0) <= step]
        self._bands = deque(bands, maxlen=RECENT)
        if not bands:
            self._first_bands = None
        self._pace.clear()


def _names(value: Any) -> list[str]:
    """The texts of a list; none where there is none."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
