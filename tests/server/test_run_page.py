"""The live page of a run in a real browser: it follows a training, obeys its buttons and keys, and tells what
the server tells. Needs Chromium; the command line is a stand-in.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.server.events_stream import Streams
from longcat_tune.server.history import History
from longcat_tune.server.serve import listen, make_server
from tests.browser import Page, browser
from tests.server.stand_in_jobs import COMMAND, LIMIT, events_of, make_run, wait_until
from tests.server.test_runs import started, write_events
from tests.server.web import make_settings

PICTURE = "validation/step_000004/grid.png"


@dataclass(frozen=True)
class Site:
    """A running server."""

    home: Path
    address: str
    streams: Streams


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("home").resolve()
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = make_server(make_settings(home, port=port, command=COMMAND))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        state = server.config.app.state
        yield Site(home, f"http://127.0.0.1:{port}", state.streams)
        for job in state.jobs.active():
            state.jobs.cancel(job.id)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def show(page: Page, address: str) -> None:
    page.call("Page.navigate", url=address)
    wait_for(page, f"document.readyState === 'complete' && location.href === '{address}'")


def wait_for(page: Page, condition: str) -> None:
    end = time.monotonic() + LIMIT
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, f"{condition} did not become true"
        time.sleep(0.05)


def text_of(page: Page, name: str) -> str:
    return page.evaluate(f"document.getElementById('{name}').textContent")


def press(page: Page, name: str, key: str, code: int, text: str = "") -> None:
    """Go to an element and press a key."""
    page.evaluate(f"document.getElementById('{name}').focus()")
    keys = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    page.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
    page.call("Input.dispatchKeyEvent", type="keyUp", **keys)


def in_state(state: str) -> str:
    return f"document.getElementById('run-head')?.dataset.state === '{state}'"


def test_a_training_is_started_followed_stopped_resumed_and_cancelled_by_keys(page, site):
    make_run(site.home, "run-1")
    show(page, f"{site.address}/runs/run-1")
    assert page.evaluate("document.getElementById('charts').hidden")
    press(page, "start", "Enter", 13, "\r")
    wait_for(page, in_state("running"))
    wait_for(page, "document.querySelectorAll('#chart-loss canvas').length === 1")
    first = text_of(page, "now-step")
    wait_for(page, f"document.getElementById('now-step').textContent !== {json.dumps(first)}")
    wait_for(page, "/^step [0-9]+$/m.test(document.getElementById('log').textContent)")
    press(page, "stop", "Enter", 13, "\r")
    wait_for(page, in_state("stopped"))
    saved = events_of(site.home, "run-1")[-2]["step"]
    wait_for(page, f"document.getElementById('now-saved').textContent.includes('{saved}')")
    wait_for(page, "document.getElementById('log').textContent.endsWith('stopped, which is saved')")
    press(page, "resume", "Enter", 13, "\r")
    wait_for(page, in_state("running"))
    wait_until(lambda: events_of(site.home, "run-1")[-1].get("step", 0) > saved)
    wait_for(page, "document.getElementById('now-left').textContent.includes('h')")
    page.evaluate("window.confirm = () => true")
    press(page, "cancel", "Enter", 13, "\r")
    wait_for(page, in_state("cancelled"))


def test_what_ended_a_run_appears_with_its_remedy(page, site):
    make_run(site.home, "run-2", fails="lora_rank (0) must be at least 1; raise it")
    show(page, f"{site.address}/runs/run-2")
    press(page, "start", "Enter", 13, "\r")
    wait_for(page, in_state("failed"))
    assert "lora_rank (0) must be at least 1; raise it" in text_of(page, "run-head")


def test_another_file_of_events_is_drawn_from_its_beginning(page, site):
    make_run(site.home, "run-3")
    path = write_events(site.home, "run-3", *started(7))
    show(page, f"{site.address}/runs/run-3")
    wait_for(page, "document.getElementById('now-step').textContent.startsWith('7 ')")
    wait_until(lambda: site.streams.open == 1)
    path.unlink()
    write_events(site.home, "run-3", *started(3, max_steps=99))
    wait_for(page, "document.getElementById('now-step').textContent === '3 of 99'")


def test_arrow_keys_tell_the_points_of_a_curve(page, site):
    make_run(site.home, "run-4")
    write_events(site.home, "run-4", *started(4))
    show(page, f"{site.address}/runs/run-4")
    wait_for(page, "document.querySelectorAll('#chart-loss canvas').length === 1")
    readout = "document.querySelector('#chart-loss .readout').textContent"
    wait_for(page, f"{readout}.startsWith('step 4:')")
    press(page, "chart-loss", "ArrowLeft", 37)
    assert page.evaluate(readout).startswith("step 3: 0.3333")
    assert page.evaluate("document.getElementById('said').textContent").startswith("step 3: 0.3333")
    press(page, "chart-loss", "Home", 36)
    assert page.evaluate(readout).startswith("step 1: 1")


def test_a_page_that_nobody_sees_gives_its_place_back(page, site):
    make_run(site.home, "run-5")
    write_events(site.home, "run-5", *started(2))
    show(page, f"{site.address}/runs/run-5")
    wait_for(page, "document.querySelectorAll('#chart-loss canvas').length === 1")
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    told = "document.dispatchEvent(new Event('visibilitychange'))"
    wait_until(lambda: site.streams.open == 1)
    page.evaluate(hide % "true" + told)
    wait_until(lambda: site.streams.open == 0)
    write_events(site.home, "run-5", {"event": "step", "step": 3, "loss": 0.5})
    page.evaluate(hide % "false" + told)
    wait_for(page, "document.getElementById('now-step').textContent.startsWith('3 ')")


def story() -> list[dict[str, Any]]:
    """Everything that can happen, with a run that was killed and begins again from its checkpoint."""

    def step(number: int) -> dict[str, Any]:
        numbers = {"learning_rate": 1e-4, "seconds": 0.5, "memory_gib": 2.0 + number}
        return {"event": "step", "step": number, "loss": number % 5 + 0.5, **numbers}

    def at(name: str, number: int, **fields: Any) -> dict[str, Any]:
        return {"event": name, "step": number, **fields}

    bands = {"losses": [0.5, None, *[1.5] * 8], "counts": [2, 0, *[1] * 8]}
    events = [{"event": "run_start", "max_steps": 40}, *map(step, range(1, 9))]
    events += [at("sigma_bands", 8, **bands), at("evaluation", 8, loss=0.5), at("checkpoint", 8)]
    events += [at("validation", 8, files=["a.mp4", "a.png"]), *map(step, range(9, 15))]
    events += [at("sigma_bands", 14, **bands), at("evaluation", 14, loss=0.4)]
    events += [at("render_failed", 14, render="a", message="no")]
    events += [{"event": "run_start", "max_steps": 40}, at("resume", 8), *map(step, range(9, 13))]
    events += [at("step_skipped", 13, reason="memory"), at("sigma_bands", 13, **bands)]
    events += [at("render_smaller", 13, render="a", change="fewer frames", reason="memory")]
    events += [at("preview", 13, render="b", denoising_step=3, file="b.preview.png")]
    return [{**event, "time": 1.8e9 + place} for place, event in enumerate(events)]


TOLD = """(async () => {
  const { RunData } = await import("/static/run_data.js");
  const [history, events] = %s;
  const data = new RunData(history);
  for (const event of events) data.add(event);
  const { columns } = data;
  return {
    step: data.step, max_steps: data.maxSteps, seconds_left: data.secondsLeft, started: data.started,
    ended: data.ended, last: data.last, bands: data.bands, evaluations: data.evaluations,
    checkpoints: data.checkpoints, validations: data.validations, notices: data.notices,
    preview: data.preview,
    columns: { step: columns.step, loss: columns.loss, seconds: columns.seconds, time: columns.time },
  };
})()"""


THINNED = """(async () => {
  const { RunData } = await import("/static/run_data.js");
  const data = new RunData(%s);
  for (let step = 1; step <= 9000; step += 1) {
    data.add({ event: "step", step, loss: 1, memory_gib: step === 17 || step === 100 ? 9 : 2, time: step });
  }
  const { columns } = data;
  return { lengths: Object.values(columns).map((one) => one.length), end: columns.step.at(-1),
    rising: columns.step.every((one, place) => !place || one > columns.step[place - 1]),
    loss: columns.loss.every((one) => one === 1),
    high: columns.memory_gib.filter((one) => one === 9).length };
})()"""


def test_the_page_makes_of_events_what_the_server_makes_of_them(page, site):
    events = story()
    show(page, f"{site.address}/")
    whole = History()
    whole.add_all(events)
    wanted = whole.as_json()
    wanted["columns"] = {name: wanted["columns"][name] for name in ("step", "loss", "seconds", "time")}
    del wanted["problems"]
    for heard in (0, 5, 12, 20, len(events)):
        before = History()
        before.add_all(events[:heard])
        told = page.evaluate(TOLD % json.dumps([before.as_json(), events[heard:]]))
        assert told == wanted, heard


def test_long_curves_are_thinned_and_keep_their_end_and_their_highest_memory(page, site):
    show(page, f"{site.address}/")
    thinned = page.evaluate(THINNED % json.dumps(History().as_json()))
    used = [length for length in thinned["lengths"] if length]
    assert len(set(used)) == 1
    assert 1000 <= used[0] <= 4000
    assert (thinned["end"], thinned["rising"], thinned["loss"], thinned["high"]) == (9000, True, True, 2)


def test_the_latest_render_is_shown(page, site):
    make_run(site.home, "run-8")
    write_events(site.home, "run-8", *started(4), {"event": "validation", "step": 4, "files": [PICTURE]})
    folder = site.home / "runs" / "run-8" / "results" / "validation" / "step_000004"
    folder.mkdir(parents=True)
    # One pixel.
    (folder / "grid.png").write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
            "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
        )
    )
    show(page, f"{site.address}/runs/run-8")
    wait_for(page, "document.querySelector('#picture img').getAttribute('src')?.includes('step_000004')")
    assert page.evaluate("document.querySelector('#picture img').alt") == "Step 4"
    assert page.evaluate("document.getElementById('picture').checkVisibility()")
