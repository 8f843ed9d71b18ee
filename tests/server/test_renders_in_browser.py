"""Galleries and previews in a real browser: videos play together, a dropped picture becomes a video.

Needs Chromium; the command line is a stand-in that has its video already.
"""

from __future__ import annotations

import base64
import io
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from longcat_tune.server.serve import listen, make_server
from tests.browser import Page, browser
from tests.server.renders import make_lora, make_renders, make_run, video_record
from tests.server.test_in_browser import (
    DUPLICATES,
    FAINT,
    LISTEN,
    NAMELESS,
    TOO_WIDE,
    press,
    show,
    speak,
    wait_until,
)
from tests.server.web import make_settings

STAND_IN = """
import json, pathlib, shutil, sys
words = sys.argv[1:]
assert words[0] == "validate" and pathlib.Path(words[words.index("--image") + 1]).is_file()
config = json.loads(pathlib.Path(words[words.index("--config") + 1]).read_text())
folder = pathlib.Path(config["output_dir"], "validation", "base")
shutil.copytree("runs/dog/results/validation/step_000010", folder)
print("12:00:01 Rendering 20/20, 1.5/s ", flush=True)
"""

VIDEOS = "[...document.querySelectorAll('main video')]"
ARROWS = {"ArrowLeft": 37, "ArrowRight": 39}


def write_video(path: Path) -> None:
    """A second of video that every browser plays."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(15))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(15):
            picture = Image.new("RGB", (64, 64), (number * 16, 80, 120))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    results = make_run(home)
    for step in ("step_000000", "step_000010", "step_000010/ema", "step_000020"):
        folder = make_renders(results, step, video_record(), video_record("cat" * 30))
        for path in folder.glob("*.mp4"):
            write_video(path)
    make_renders(results, "step_000020/ema", failures=[{"name": "prompt", "reason": "no memory " * 30}])
    Image.new("RGB", (2000, 100)).save(results / "validation" / "contact_sheet.png")
    make_lora(results / "checkpoint-000010")
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        settings = make_settings(home, port=port, command=(sys.executable, "-c", STAND_IN))
        server = make_server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory, site) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
        yield opened


def require_fine(page: Page) -> None:
    assert page.evaluate("faults") == []
    for fault in (FAINT, TOO_WIDE, NAMELESS, DUPLICATES):
        assert page.evaluate(fault) == []


@pytest.mark.parametrize("view", ["steps", "requests", "sheets", "files"])
def test_every_view_can_be_read_by_all(page, site, view):
    for language, scheme, width in (("en", "light", 1280), ("zh", "dark", 390)):
        speak(page, site, language)
        show(page, f"{site}/runs/dog/gallery?view={view}", width=width, scheme=scheme)
        require_fine(page)


def test_renders_of_one_prompt_play_together(page, site):
    show(page, f"{site}/runs/dog/gallery?weights=step_000010")
    assert page.evaluate(f"{VIDEOS}.length") == 6
    wait_until(page, f"{VIDEOS}.every((one) => one.readyState >= 3 && !one.paused && one.currentTime > 0)")
    press(page, " ", 32, text=" ")
    wait_until(page, f"{VIDEOS}.every((one) => one.paused)")
    page.evaluate(f"{VIDEOS}[0].currentTime = 0.6")
    wait_until(page, f"{VIDEOS}.slice(0, 3).every((one) => Math.abs(one.currentTime - 0.6) < 0.3)")


def test_the_keyboard_goes_through_the_steps(page, site):
    show(page, f"{site}/runs/dog/gallery?weights=step_000010")
    for key, name in (
        ("ArrowRight", "step_000020"),
        ("ArrowLeft", "step_000010"),
        ("ArrowLeft", "step_000000"),
    ):
        press(page, key, ARROWS[key])
        wait_until(page, f"document.querySelector('#weights').value === '{name}'")
        wait_until(page, f"location.search === '?weights={name}'")
    press(page, "ArrowRight", ARROWS["ArrowRight"])
    wait_until(page, "document.querySelector('[data-base]')?.checkVisibility()")
    press(page, "b", 66, text="b")
    wait_until(page, "document.querySelector('[data-base]').checkVisibility() === false")


def drop(page: Page, data: bytes, name: str) -> None:
    """Drop a file on the page, as from a folder."""
    text = base64.b64encode(data).decode()
    page.evaluate(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{text}"), (one) => one.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "{name}", {{type: "image/png"}}));
          const event = new DragEvent("drop", {{bubbles: true, cancelable: true, dataTransfer}});
          document.querySelector("#drop").dispatchEvent(event);
        }})()"""
    )


def test_a_dropped_picture_becomes_a_video_that_plays(page, site):
    speak(page, site, "en")
    show(page, f"{site}/preview?run=dog")
    drop(page, b"<svg></svg>", "lie.png")
    wait_until(page, "document.querySelector('#notices').textContent.includes('no PNG')")
    assert page.evaluate("document.querySelector('[name=start]').value") == ""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(picture, "JPEG")
    drop(page, picture.getvalue(), "photo.jpg")
    wait_until(page, "document.querySelector('#start-size').textContent === '64 × 48'")
    page.evaluate("document.querySelector('[name=prompt]').value = 'a dog'")
    page.evaluate("document.querySelector('#submit').focus()")
    press(page, "Enter", 13, text="\r")
    wait_until(page, "document.querySelector('article video')?.readyState >= 3")
    page.evaluate("document.querySelector('article video').play()")
    wait_until(page, "document.querySelector('article video').currentTime > 0")
    command = page.evaluate("document.querySelector('article pre').textContent")
    assert command.startswith("longcat-tune validate --config ")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    wait_until(page, "[...document.querySelectorAll('pre')].at(-1).textContent.includes('Rendering 20/20')")
    require_fine(page)
    for width, scheme in ((390, "dark"), (1280, "light")):
        show(page, f"{site}/preview", width=width, scheme=scheme)
        require_fine(page)


def test_values_of_a_base_replace_only_what_came_with_the_former(page, site):
    show(page, f"{site}/preview?run=dog")
    values = "['width', 'steps', 'frames'].map((one) => document.querySelector(`[name=${one}]`).value)"
    assert page.evaluate(values) == ["480", "40", "93"]
    page.evaluate("document.querySelector('[name=steps]').value = '9'")
    choose = """(() => {
      const base = document.querySelector("#base");
      base.value = "tiny";
      base.dispatchEvent(new Event("change", {bubbles: true}));
    })()"""
    page.evaluate(choose)
    assert page.evaluate(values) == ["192", "9", "17"]
    assert page.evaluate("document.querySelector('#model-field').hidden")
    page.evaluate(choose.replace("tiny", "model"))
    assert not page.evaluate("document.querySelector('#model-field').hidden")


def test_another_lora_is_a_row_of_its_own(page, site):
    show(page, f"{site}/preview?lora=runs/dog/results/checkpoint-000010")
    page.evaluate("document.querySelector('#add-lora').click()")
    rows = "[...document.querySelectorAll('[name=lora]')].map((one) => one.value)"
    assert page.evaluate(rows) == ["runs/dog/results/checkpoint-000010", ""]
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('[name=lora]')].at(-1)")
