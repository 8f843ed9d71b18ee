"""A first run in a real browser and with the real command line: from an empty workspace to a LoRA's preview.

Needs Chromium. The server is killed twice on the way; nothing waits for a time, all for what must come.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.browser import Page, browser
from tests.builders import make_clips
from tests.server.test_in_browser import press, speak

PATIENCE = 600.0
"""Seconds after which something counts as never coming, on however busy a machine."""
FAR_AWAY = 100_000
"""Steps: more than the miniature does while the test looks at it."""
SMALL = {
    "resolution": 64,
    "framerate": 15,
    "validation_resolution": "64x64",
    "validation_num_video_frames": 9,
    "validation_num_inference_steps": 2,
    "validation_prompt": "a shape",
}
CONTROL = 2
"""The modifier of a key, as the browser counts them."""
STATE = "document.querySelector('#run-head')?.dataset.state"
STEP = "Number(document.querySelector('#now-step').textContent.match(/[0-9]+/)?.[0] ?? 0)"
LOG = "document.querySelector('#log').textContent"
CHECKED = "document.querySelector('#check-result')"
CAPTION = "[...document.querySelectorAll('.caption textarea')].find((one) => !one.defaultValue)"


class Site:
    """The web UI as a process that can be killed and started again at the same address.

    Args:
        home: its first workspace folder, which need not be there.
        clips: its second.
        log: where it writes.
    """

    def __init__(self, home: Path, clips: Path, log: Path) -> None:
        self.home, self.clips = home, clips
        self.address = ""
        self._port = "0"
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = ("-m", "longcat_tune", "server", "--port", self._port)
        words += ("--workspace", str(self.home), "--workspace", str(self.clips))
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        [self._port] = re.findall(r":(\d+)/", told) or [told + self._log.read_text()]
        self.address = f"http://localhost:{self._port}"

    def kill(self) -> None:
        """End it without a word, as when its machine's memory is full."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def end_jobs(self) -> None:
        """Of a test that failed on the way: nothing may train on."""
        jobs = self.home / ".longcat-tune" / "jobs"
        for child in jobs.glob("*/child.json"):
            if not child.with_name("ended.json").exists():
                with suppress(ProcessLookupError):
                    os.killpg(json.loads(child.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    running = Site(tmp_path / "workspace", make_clips(tmp_path / "dances", 3), tmp_path / "server.log")
    try:
        running.start()
        yield running
    finally:
        running.kill()
        running.end_jobs()


@pytest.fixture
def page(tmp_path, site) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        speak(opened, site.address, "en")
        # Downloads go where a test finds them.
        opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
        yield opened


def until(page: Page, condition: str) -> None:
    """Ask until it holds, on whichever page there is; between two pages there is nobody to answer."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(AssertionError):
            if page.evaluate(condition):
                return
        time.sleep(0.05)
    pytest.fail(f"never became true: {condition}\n{page.evaluate('document.body.innerText')}")


def until_there(folder: Path, pattern: str) -> Path:
    """Wait for a file."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for path in folder.glob(pattern):
            return path
        time.sleep(0.05)
    pytest.fail(f"never came: {pattern} in {folder}")


def where(page: Page) -> str:
    return str(page.evaluate("location.pathname + location.search"))


def found(selector: str, text: str = "") -> str:
    """The first element that can be seen and pressed and has a text in it, as an expression.

    What htmx has just put in, and what is on a page that still loads, does not answer yet.
    """
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find((one) => "
        "document.readyState === 'complete' && !one.closest('.htmx-added') && one.checkVisibility() "
        f"&& !one.disabled && one.textContent.includes({json.dumps(text)}))"
    )


def click(page: Page, selector: str, text: str = "") -> None:
    """Wait until something can be pressed, and press it at that moment: it may be replaced in the next."""
    until(page, f"((one) => one && (one.click(), true))({found(selector, text)})")


def go(page: Page, address: str) -> None:
    page.call("Page.navigate", url=address)
    until(page, f"location.href === '{address}' && document.readyState === 'complete'")


def leave(page: Page, selector: str, text: str = "") -> None:
    """Press what leads to another page, or to the same one anew, and wait for that."""
    page.evaluate("window.former = true, undefined")
    click(page, selector, text)
    until(page, "!window.former && document.readyState === 'complete'")


def fill_in(page: Page, selector: str, value: str) -> None:
    """Change a field as a person does, as far as the page can tell."""
    until(page, f"Boolean({found(selector)})")
    page.evaluate(
        f"""(() => {{
          const field = {found(selector)};
          field.value = {json.dumps(value)};
          for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {{bubbles: true}}));
        }})()"""
    )


@pytest.mark.slow
def test_an_empty_workspace_becomes_a_lora_and_a_video_from_a_picture(page, site, tmp_path):
    forgotten = site.clips / "clip-1.txt"
    forgotten.unlink()
    make_dataset(page, site)
    begin_run(page, site, forgotten)
    steps = train_past_a_dead_server(page, site)
    go_on_without_a_server(page, site, last_step=steps + 20)
    watch_the_render(page)
    download_the_lora(page, tmp_path / "downloads")
    preview_from_a_picture(page, tmp_path / "start.png")


def make_dataset(page: Page, site: Site) -> None:
    """From the first page to a data file; its clips are shorter than what is usual."""
    go(page, site.address + "/")
    leave(page, ".empty a", "Make a dataset")
    click(page, "button.folder", "dances")
    until(page, "document.querySelector('[name=folder]').value === 'dances'")
    leave(page, "#new button", "Make the dataset")
    assert where(page) == "/datasets/dances"
    click(page, ".settings > summary")
    click(page, ".group > summary", "Frames")
    fill_in(page, "[name='video.num_frames']", "9")
    leave(page, ".settings button", "Save")


def begin_run(page: Page, site: Site, forgotten: Path) -> None:
    """A new run, whose check finds a clip without a caption, which is written where the check leads to."""
    leave(page, "#train")
    assert where(page) == "/runs/new?dataset=dances"
    fill_in(page, "#run-name", "My first run")
    fill_in(page, "#flavour", "tiny")
    fill_in(page, "#key-max_train_steps", str(FAR_AWAY))
    until(page, f"JSON.parse(document.querySelector('#text').value).max_train_steps === {FAR_AWAY}")
    text = json.loads(page.evaluate("document.querySelector('#text').value"))
    fill_in(page, "#text", json.dumps(text | SMALL | {"validation_step_interval": FAR_AWAY}))
    until(page, f"{CHECKED}.getAttribute('aria-busy') === 'false' && {CHECKED}.innerText.includes('clip-1')")
    assert page.evaluate("document.querySelector('#start').disabled")
    leave(page, "#check-result a[href='/datasets/dances']")
    until(page, f"Boolean({CAPTION})")
    page.evaluate(f"{CAPTION}.focus()")
    page.call("Input.insertText", text="a square that slides")
    press(page, "Enter", 13, modifiers=CONTROL)
    until(page, "Boolean(document.querySelector('.caption .saved'))")
    assert forgotten.read_text().strip() == "a square that slides"
    leave(page, "#train")
    assert where(page) == "/runs/new?dataset=dances"
    assert page.evaluate("document.querySelector('#run-name').value") == "My first run"
    leave(page, "#start")
    assert where(page) == "/runs/my-first-run"


def train_past_a_dead_server(page: Page, site: Site) -> int:
    """The page moves on its own, also past the death of its server; stopping saves. Gives the steps done."""
    until(page, f"{STATE} === 'running' && {STEP} >= 2")
    site.kill()
    seen = page.evaluate(STEP)
    events = site.home / "runs/my-first-run/results/events.jsonl"
    written = events.stat().st_size
    while events.stat().st_size == written:
        time.sleep(0.05)
    site.start()
    until(page, f"{STEP} > {seen} && {LOG}.includes('clips')")
    click(page, "#stop")
    until(page, f"{STATE} === 'stopped'")
    steps = page.evaluate(STEP)
    assert (events.parent / f"checkpoint-{steps:06d}").is_dir()
    return int(steps)


def go_on_without_a_server(page: Page, site: Site, *, last_step: int) -> None:
    """With another end in its settings a run resumes; it comes to it while no server is there to see it."""
    leave(page, "#run-head a", "Settings")
    fill_in(page, "#key-max_train_steps", str(last_step))
    # The answer to one field replaces the others.
    until(page, f"JSON.parse(document.querySelector('#text').value).max_train_steps === {last_step}")
    fill_in(page, "#key-validation_step_interval", str(last_step))
    until(page, f"JSON.parse(document.querySelector('#text').value).validation_step_interval === {last_step}")
    leave(page, "#save")
    leave(page, "a[href='/runs/my-first-run']")
    click(page, "#resume")
    until(page, f"{STATE} === 'running'")
    site.kill()
    newest = max((site.home / ".longcat-tune" / "jobs").iterdir())
    until_there(newest, "ended.json")
    site.start()
    go(page, site.address + "/")
    leave(page, ".run a", "My first run")
    done = f"Training {last_step}/{last_step}"
    until(page, f"{STATE} === 'finished' && {STEP} === {last_step} && {LOG}.includes('{done}')")


def watch_the_render(page: Page) -> None:
    leave(page, "#run-head a", "Renders")
    until(page, "document.querySelector('main video')?.readyState >= 2")
    until(page, "document.querySelector('main video').currentTime > 0")


def download_the_lora(page: Page, downloads: Path) -> None:
    """What the browser leaves is a LoRA that has learned."""
    leave(page, ".tabs a", "LoRA")
    click(page, "a[download][id^='lora-last-peft']")
    weights = load_file(until_there(downloads, "*.safetensors"))
    learned = [weight for name, weight in weights.items() if "lora_B" in name]
    assert learned
    assert all((weight != 0).any() for weight in learned)


def preview_from_a_picture(page: Page, picture: Path) -> None:
    """From the run's page on: its LoRA is in the form already."""
    Image.new("RGB", (96, 96), "teal").save(picture)
    leave(page, ".head a[href='/runs/my-first-run']")
    leave(page, "#try")
    assert where(page) == "/preview?run=my-first-run"
    assert page.evaluate("document.querySelector('[name=lora]').value").startswith(
        "runs/my-first-run/results/"
    )
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    file_field = page.call("DOM.querySelector", nodeId=root, selector="#start-file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=file_field, files=[str(picture)])
    until(page, "document.querySelector('[name=start]').value !== ''")
    fill_in(page, "[name=prompt]", "a square that slides")
    click(page, "#submit")
    until(page, "document.querySelector('article video')?.readyState >= 2")
    page.evaluate("document.querySelector('article video').play()")
    until(page, "document.querySelector('article video').currentTime > 0")
