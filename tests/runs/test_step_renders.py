"""Renders in a run put the average in place of the weights whole, and whole they take it back."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from longcat_tune.runs.render_record import RenderRecord
from longcat_tune.runs.step_renders import StepRenders
from longcat_tune.training.ema import Ema
from longcat_tune.training.metrics import EventLog
from longcat_tune.training.trouble import StopRequest
from tests.builders import make_run
from tests.runs.gallery_builders import make_set


class Interrupted(Ema):
    """Hears a signal in the middle of one of its swaps."""

    def __init__(self, named: dict[str, Parameter], hear: Callable[[], None], *, at: int) -> None:
        super().__init__(named.items(), decay=0.9)
        self.hear, self.at, self.swaps = hear, at, 0

    def _put(self, weights: list[Tensor]) -> None:
        self.swaps += 1
        if self.swaps == self.at:
            with torch.no_grad():
                next(iter(self._named.values())).copy_(weights[0])
            self.hear()
        super()._put(weights)


class FakeRenderer:
    def __init__(self, named: dict[str, Parameter]) -> None:
        self.named = named
        self.seen: list[list[float]] = []

    def render(self, _requests: Any, *, folder: Path, **_: Any) -> RenderRecord:
        self.seen.append([parameter.item() for parameter in self.named.values()])
        return make_set(folder, {"a": 10})


def step_renders(folder: Path, ema: Ema, renderer: FakeRenderer, choice: str = "ema_only") -> StepRenders:
    config = make_run(folder, [], data_backend_config=None, use_ema=True, ema_validation=choice)
    parts = SimpleNamespace(model=torch.nn.Linear(1, 1), loop=SimpleNamespace(ema=ema))
    events = EventLog(config.output.output_dir / "events.jsonl")
    return StepRenders(config=config, base="base", requests=(), parts=parts, renderer=renderer, events=events)


def weights(**values: float) -> dict[str, Parameter]:
    return {name: Parameter(torch.tensor(value)) for name, value in values.items()}


def moved(named: dict[str, Parameter], value: float) -> None:
    with torch.no_grad():
        for parameter in named.values():
            parameter.fill_(value)


@pytest.mark.parametrize(("at", "rendered"), [(1, []), (2, [[0.0, 0.0]])])
def test_a_signal_while_the_average_is_swapped_leaves_the_trained_weights(
    tmp_path: Path, at: int, rendered: list[list[float]]
) -> None:
    stop, named = StopRequest(), weights(first=0.0, second=0.0)
    ema = Interrupted(named, lambda: stop.handle(signal.SIGINT, None), at=at)
    moved(named, 1.0)
    renderer = FakeRenderer(named)
    renders = step_renders(tmp_path, ema, renderer)
    # The first ends in it; pytest would take any that is not expected for its own.
    with suppress(KeyboardInterrupt):
        renders.validate(4, stop.abandoning)
    assert stop.requested
    assert [parameter.item() for parameter in named.values()] == [1.0, 1.0]
    assert renderer.seen == rendered


@pytest.mark.parametrize(
    ("choice", "places"), [("none", [""]), ("ema_only", ["ema/"]), ("comparison", ["", "ema/"])]
)
def test_averaged_renders_lie_in_a_folder_of_their_own(
    tmp_path: Path, choice: str, places: list[str]
) -> None:
    named = weights(a=0.0)
    ema = Ema(named.items(), decay=0.9)
    moved(named, 1.0)
    renderer = FakeRenderer(named)
    step_renders(tmp_path, ema, renderer, choice).validate(4, StopRequest().abandoning)
    assert renderer.seen == [[0.0] if place else [1.0] for place in places]
    [event] = map(json.loads, (tmp_path / "out" / "events.jsonl").read_text().splitlines())
    assert [file for file in event["files"] if file.endswith(".mp4")] == [
        f"validation/step_000004/{place}a.mp4" for place in places
    ]
