"""validation/index.html in a real browser: every video of every moment plays, by mouse and by keyboard."""

from __future__ import annotations

from pathlib import Path

from longcat_tune.runs.gallery import write_gallery
from tests.browser import Page, browser
from tests.runs.gallery_builders import make_set

PLAYING = """
Promise.all([...document.querySelectorAll("video")].map(async (video) => {
  if (video.readyState < 2) await new Promise((done, fail) => {
    video.addEventListener("loadeddata", done); video.addEventListener("error", () => fail(video.src));
  });
  video.loop = true;
  await video.play();
  if (video.currentTime === 0) await new Promise((done) => video.addEventListener("timeupdate", done));
  return [decodeURIComponent(video.src.split("/validation/")[1]), video.readyState >= 2, video.videoWidth];
}))
"""
STATE = 'document.getElementById("moment").selectedOptions[0].textContent'


def press(page: Page, key: str, code: str, number: int) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=code,
            windowsVirtualKeyCode=number,
            text=key if len(key) == 1 and kind == "keyDown" else "",
        )


def test_every_video_plays_and_keys_choose_what_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "a run" / "validation"
    make_set(root / "step_000000", {"a": 40, "夜 100%": 60})
    make_set(root / "step_000004", {"a": 80, "夜 100%": 100})
    make_set(root / "step_000004" / "ema", {"a": 120})
    index = write_gallery(root, root / "step_000004")
    with browser(tmp_path / "profile") as page:
        page.open(index)
        assert page.evaluate(STATE) == "step 4"
        shown = page.evaluate(PLAYING)
        assert [file for file, _, _ in shown] == [
            "step_000000/a.mp4",
            "step_000004/a.mp4",
            "step_000004/ema/a.mp4",
            "step_000000/夜 100%.mp4",
            "step_000004/夜 100%.mp4",
        ]
        assert all(ready and width == 80 for _, ready, width in shown)
        press(page, "b", "KeyB", 66)
        assert page.evaluate(PLAYING)[0][0] == "step_000004/a.mp4"
        press(page, "ArrowLeft", "ArrowLeft", 37)
        assert page.evaluate(STATE) == "step 0, before training"
        assert len(page.evaluate(PLAYING)) == 2
        press(page, " ", "Space", 32)
        assert page.evaluate('[...document.querySelectorAll("video")].every((video) => video.paused)')
        assert page.evaluate('document.querySelectorAll("td .cell").length') == 4


def test_a_video_in_a_folder_whose_name_is_not_utf_8_plays(tmp_path: Path) -> None:
    root = tmp_path / "a run \udcff" / "validation"
    make_set(root / "lora-\udcfe", {"a": 40})
    with browser(tmp_path / "profile") as page:
        page.open(write_gallery(root))
        assert page.evaluate(PLAYING.replace("decodeURIComponent", "")) == [["lora-%FE/a.mp4", True, 80]]
        assert page.evaluate("document.title").startswith("Renders of a run")
