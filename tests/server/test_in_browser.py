"""Every page in a real browser: nothing breaks the content policy or fails, all fits a phone, keys reach it.

Needs Chromium; the server runs in a thread over a workspace with a run and a dataset.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from longcat_tune.server.serve import listen, make_server
from tests.browser import Page, browser
from tests.server.web import make_settings

PAGES = (
    "/",
    "/runs/new",
    "/datasets",
    "/datasets/snow",
    "/preview",
    "/runs/fox",
    "/runs/fox/config",
    "/runs/fox/gallery",
    "/nowhere",
)
LISTEN = """
window.faults = [];
const note = (event) => faults.push(`policy: ${event.violatedDirective} ${event.blockedURI}`);
addEventListener("securitypolicyviolation", note);
addEventListener("error", (event) => faults.push(`error: ${event.message ?? event.target.outerHTML}`), true);
addEventListener("unhandledrejection", (event) => faults.push(`rejected: ${event.reason}`));
"""
SETTLED = """new Promise((done) => {
  const ready = () => requestIdleCallback(() => requestAnimationFrame(() => done(faults)));
  document.readyState === "complete" ? ready() : addEventListener("load", ready);
})"""
TOO_WIDE = """(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  return wide <= 0 ? [] : [...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map((one) => one.outerHTML.slice(0, 100));
})()"""
NAMELESS = """[...document.querySelectorAll(
    "a, button, input, select, textarea, progress, video, [role=img], [tabindex='0']")]
  .filter((one) => one.type !== "hidden" && one.checkVisibility())
  .filter((one) => !(one.labels?.length || one.ariaLabel || one.getAttribute("aria-labelledby") || one.title
    || (one.matches("a, button, [tabindex='0']") && one.textContent.trim())))
  .map((one) => one.outerHTML.slice(0, 100))"""
DUPLICATES = """Object.entries(Object.groupBy(document.querySelectorAll("[id]"), (one) => one.id))
  .filter(([, all]) => all.length > 1).map(([id]) => id)"""
FAINT = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const bytes = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([...rgb]) => rgb.slice(0, 3).map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const style = getComputedStyle(one);
      if (bytes(style.backgroundColor)[3] === 255) return bytes(style.backgroundColor);
    }
    return bytes("Canvas");
  };
  const faint = [];
  for (const one of document.querySelectorAll("body *")) {
    const says = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const off = one.closest(":disabled, [aria-disabled=true], option, .unseen, .skip");
    if (!says || off || !one.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const [a, b] = [light(bytes(getComputedStyle(one).color)), light(ground(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${one.outerHTML.slice(0, 100)}`);
  }
  return faint;
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    """The address of a running server."""
    home = tmp_path_factory.mktemp("home")
    fill(home)
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = make_server(make_settings(home, port=port))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def fill(home: Path) -> None:
    """A run that has trained, and a dataset of an empty folder."""
    results = home / "runs" / "fox" / "results"
    results.mkdir(parents=True)
    (home / "clips").mkdir()
    (home / "datasets").mkdir()
    entry = {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "../clips"}
    (home / "datasets" / "snow.json").write_text(json.dumps([entry]))
    (results.parent / "config.json").write_text(json.dumps({"output_dir": "results", "lora_rank": 8}))
    (results.parent / "run.json").write_text(
        json.dumps({"name": "Red fox in the snow " * 5, "created": 1.8e9})
    )
    lines = [{"event": "run_start", "time": 1.8e9, "max_steps": 100}, *map(step, range(1, 50))]
    (results / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def step(number: int) -> dict[str, Any]:
    values = {"loss": 1 / number, "learning_rate": 1e-4, "grad_norm": 1.0, "sigma_mean": 0.5}
    times = {"time": 1.8e9 + number, "seconds": 1.0, "memory_gib": 18.5, "samples": 1, "epoch": 0}
    return {"event": "step", "step": number, **values, **times}


@pytest.fixture(scope="module")
def page(tmp_path_factory, site) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
        yield opened


def show(page: Page, address: str, *, width: int = 1280, scheme: str = "light") -> list[str]:
    """Open an address; gives what went wrong."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Page.navigate", url=address)
    return page.evaluate(SETTLED)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_breaks_nothing_and_can_be_read_by_all(page, site, path):
    for language, scheme, width in (("en", "light", 1280), ("zh", "dark", 390)):
        speak(page, site, language)
        assert show(page, site + path, width=width, scheme=scheme) == []
        assert page.evaluate("document.documentElement.lang")[:2] == language
        assert page.evaluate(FAINT) == []
        assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(DUPLICATES) == []
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.title").endswith(" · longcat-tune")


def test_the_keyboard_skips_the_navigation(page, site):
    show(page, site + "/nowhere")
    press(page, "Tab", 9)
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    press(page, "Enter", 13, text="\r")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_notice_comes_when_the_server_refuses_and_goes_with_escape(page, site):
    speak(page, site, "en")
    show(page, site + "/nowhere")
    shown = "document.querySelector('#notices').textContent"
    page.evaluate("htmx.ajax('GET', '/nowhere/else', {target: 'main'})")
    assert "There is no such page" in page.evaluate(shown)
    assert page.evaluate("document.querySelectorAll('main').length") == 1
    press(page, "Escape", 27)
    assert page.evaluate(shown).strip() == ""


def test_the_language_changes_with_one_press_and_the_page_stays(page, site):
    speak(page, site, "en")
    show(page, site + "/nowhere")
    # Later, so that this evaluation is over before the page goes.
    page.evaluate("setTimeout(() => document.querySelector('.languages button').click()), undefined")
    wait_until(page, "document.documentElement.lang === 'zh-Hans' && document.readyState === 'complete'")
    assert page.evaluate("location.pathname") == "/nowhere"


def speak(page: Page, site: str, language: str) -> None:
    page.call("Network.setCookie", name="longcat_tune_language", value=language, url=site)


def press(page: Page, key: str, code: int, **more: Any) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)


def wait_until(page: Page, condition: str) -> None:
    """Ask until it holds, on whichever page there is; between two pages there is nobody to answer."""
    for _ in range(2000):
        with suppress(AssertionError):
            if page.evaluate(condition):
                return
        time.sleep(0.02)
    pytest.fail(f"never became true: {condition}")
