"""What events are folded into: curves of bounded length, what is rare in full, and steps that come again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longcat_tune.server.history import History


def step(number: int, **fields: Any) -> dict[str, Any]:
    values = {"loss": 1.0, "learning_rate": 1e-4, "seconds": 0.5, "memory_gib": 2.0, "time": float(number)}
    return {"event": "step", "step": number, **values, **fields}


def kept(name: str, number: int, **fields: Any) -> dict[str, Any]:
    return {"event": name, "step": number, **fields}


def start(max_steps: int = 100, time: float = 0.0) -> dict[str, Any]:
    return {"event": "run_start", "max_steps": max_steps, "time": time}


def fold(*events: dict[str, Any], limit: int = 2000) -> History:
    history = History(limit)
    history.add_all(events)
    return history


def test_short_curves_are_given_as_they_are():
    columns = fold(start(), *(step(n, loss=1 / n) for n in range(1, 6))).as_json()["columns"]
    assert columns["step"] == [1, 2, 3, 4, 5]
    assert columns["loss"] == [1 / n for n in range(1, 6)]
    assert {len(column) for column in columns.values()} == {5}


def test_long_curves_have_points_enough_but_never_more_than_the_limit():
    for count in (2000, 2001, 10_000, 123_457):
        columns = fold(*(step(n) for n in range(1, count + 1))).as_json()["columns"]
        assert 1000 <= len(columns["step"]) <= 2000
        assert columns["step"][-1] == count
        assert columns["step"] == sorted(set(columns["step"]))


def test_neighbours_are_taken_together_so_that_nothing_is_hidden():
    numbers = range(1, 65)
    history = fold(*(step(n, loss=float(n), memory_gib=9.0 if n == 20 else 1.0) for n in numbers), limit=10)
    columns = history.as_json()["columns"]
    assert max(columns["memory_gib"]) == 9.0
    # Means, each of as many steps as the point stands for: 1 to 7, 8 to 15, 16 to 23 and so on.
    assert columns["step"][:3] == [7, 15, 23]
    assert columns["loss"][:3] == [pytest.approx(4), pytest.approx(11.5), pytest.approx(19.5)]


def test_how_events_are_cut_into_parts_makes_no_difference():
    events = [start(), *(step(n, loss=n % 7) for n in range(1, 500))]
    whole, parts = fold(*events, limit=50), History(50)
    for place in range(0, len(events), 3):
        parts.add_all(events[place : place + 3])
    assert parts.as_json() == whole.as_json()


def test_everything_rare_is_kept():
    events = [start(10_000)]
    for n in range(1, 10_001):
        events.append(step(n))
        if n % 100 == 0:
            events += [kept(name, n) for name in ("evaluation", "checkpoint", "validation")]
    value = fold(*events).as_json()
    for name in ("evaluations", "checkpoints", "validations"):
        assert [event["step"] for event in value[name]] == list(range(100, 10_001, 100))


def test_a_run_that_goes_on_from_before_its_last_step_takes_the_place_of_what_came_after():
    first = [start(), *(step(n, loss=9.0) for n in range(1, 9)), kept("evaluation", 8), kept("checkpoint", 5)]
    again = [start(), kept("resume", 5), *(step(n, loss=1.0) for n in (6, 7))]
    value = fold(*first, *again).as_json()
    assert value["columns"]["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert value["columns"]["loss"] == [9.0] * 5 + [1.0] * 2
    assert value["evaluations"] == []
    assert [event["step"] for event in value["checkpoints"]] == [5]
    assert value["step"] == 7


def test_a_run_that_begins_again_from_nothing_forgets_the_first():
    value = fold(start(), step(1), step(2), kept("validation", 2), start(), step(1, loss=5.0)).as_json()
    assert value["columns"]["loss"] == [5.0]
    assert value["validations"] == []


def test_a_render_made_again_at_the_same_step_is_there_once():
    value = fold(kept("validation", 5, files=["a"]), kept("validation", 5, files=["b"])).as_json()
    assert [event["files"] for event in value["validations"]] == [["b"]]


def test_a_new_start_leaves_the_problems_of_the_last_behind():
    failed = [start(), step(1), {"event": "error", "message": "the disk is full; free some"}]
    failed += [kept("render_failed", 1, traceback="in /home/me"), {"event": "run_end", "how": "failed"}]
    history = fold(*failed)
    assert history.summary().problems == ("the disk is full; free some",)
    assert history.summary().ended == {"event": "run_end", "how": "failed"}
    assert [event["event"] for event in history.as_json()["notices"]] == ["render_failed"]
    assert "traceback" not in json.dumps(history.as_json())
    history.add_all([start()])
    assert history.summary().problems == ()
    assert history.summary().ended is None
    assert history.as_json()["notices"] == []


def test_time_left_is_told_at_the_pace_of_late():
    history = fold(start(50), *(step(n, time=n * 1.0) for n in range(1, 11)))
    assert history.summary().seconds_left == pytest.approx(40)
    history.add_all(step(n, time=10 + (n - 10) * 3.0) for n in range(11, 41))
    assert 10 < history.summary().seconds_left < 30
    assert history.summary().progress == pytest.approx(0.8)
    # A pause between two starts is no pace.
    history.add_all([start(50), kept("resume", 40), step(41, time=9000.0)])
    assert history.summary().seconds_left is None


def test_the_latest_picture_is_found():
    files = {2: ["validation/step_000002/a.mp4", "validation/step_000002/grid.png"], 4: ["b.mp4"]}
    history = fold(*(kept("validation", n, files=names) for n, names in files.items()))
    assert history.summary().picture == "validation/step_000002/grid.png"
    assert fold(start()).summary().picture is None


def test_a_preview_lasts_until_its_render_is_there():
    history = fold(kept("preview", 3, file="a.preview.png"))
    assert history.as_json()["preview"]["file"] == "a.preview.png"
    history.add_all([kept("validation", 3, files=[])])
    assert history.as_json()["preview"] is None


def test_of_the_losses_by_noise_level_the_first_and_the_latest_are_kept():
    bands = [kept("sigma_bands", n, losses=[n], counts=[1]) for n in range(1, 31)]
    value = fold(*bands).as_json()["bands"]
    assert value["first"]["step"] == 1
    assert [event["step"] for event in value["recent"]] == list(range(21, 31))


@pytest.mark.parametrize("junk", [None, "x", [], {}, True, float("nan")])
def test_fields_that_are_no_numbers_leave_a_gap(junk):
    events = [start(), step(1), step(2, loss=junk, time=junk), step(3), kept("validation", 3, files=junk)]
    events += [kept("validation", 4, files=[junk]), {"event": "run_start", "max_steps": junk}]
    history = fold(*events, {"event": "step", "step": junk}, {"event": "unheard of", "step": 3})
    assert history.as_json()["columns"]["loss"] == [1.0, None, 1.0]
    assert history.summary().max_steps is None


def test_the_latest_loss_stays_where_a_step_has_none():
    history = fold(start(), step(1, loss=0.5), step(2, loss=None, seconds=0.7))
    assert (history.summary().last["loss"], history.summary().last["seconds"]) == (0.5, 0.7)


def test_values_are_json():
    json.dumps(fold(start(), step(1), kept("sigma_bands", 1)).as_json(), allow_nan=False)
