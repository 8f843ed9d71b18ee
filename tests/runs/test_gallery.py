"""The page, the contact sheet and the comparisons show what the records say, in the right places."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from longcat_tune.runs.gallery import find_moments, write_gallery
from longcat_tune.runs.render_record import FailedRender, read_record
from longcat_tune.sampling.pictures import CELL_HEIGHT, LABEL_HEIGHT, SIDE_WIDTH
from tests.runs.gallery_builders import make_set


def page_data(root: Path) -> dict[str, Any]:
    page = (root / "index.html").read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_set(tmp_path, {"a": 10}, failures=(FailedRender("b", "no"),))
    assert read_record(tmp_path) == record
    (tmp_path / "renders.json").write_text('{"videos": [{"key": 1}], "failures": []}')
    assert read_record(tmp_path) is None
    (tmp_path / "renders.json").write_text('"text"')
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None


def test_moments_are_the_base_then_the_steps_then_lora_files(tmp_path: Path) -> None:
    for name in ("step_000010", "my-lora", "step_000002", "base", "step_000000"):
        make_set(tmp_path / name, {"a": 10})
    (tmp_path / "empty").mkdir()
    labels = [moment.label for moment in find_moments(tmp_path)]
    assert labels == ["base model", "step 0, before training", "step 2", "step 10", "my-lora"]


def test_the_page_holds_every_video_by_request_and_moment_with_paths_that_exist(tmp_path: Path) -> None:
    root = tmp_path / "out" / "validation"
    make_set(root / "step_000000", {"a": 10, "b": 20})
    make_set(root / "step_000004", {"a": 30, "b": 40}, failures=(FailedRender("c", "out of memory"),))
    make_set(root / "step_000004" / "ema", {"a": 50})
    assert write_gallery(root) == root / "index.html"
    data = page_data(root)
    assert data["run"] == "out"
    assert [moment["id"] for moment in data["moments"]] == ["step_000000", "step_000004"]
    assert data["moments"][1]["failures"] == [{"name": "c", "reason": "out of memory"}]
    a, b = data["requests"]
    assert a["prompt"] == "A prompt </script> of a, 雨"
    assert set(a["at"]["step_000004"]) == {"live", "averaged"}
    assert set(b["at"]["step_000004"]) == {"live"}
    files = re.findall(r'"(?:src|strip)": "([^"]+)"', json.dumps(data))
    assert len(files) == 10
    assert all((root / unquote(file)).is_file() for file in files)


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    make_set(tmp_path / "base", {"a": 10})
    page = write_gallery(tmp_path).read_text(encoding="utf-8")
    assert "http" not in page
    assert not re.search(r"<link|src=\"|@import", page)


def test_nothing_rendered_is_no_page(tmp_path: Path) -> None:
    assert write_gallery(tmp_path / "nowhere") is None
    assert write_gallery(tmp_path) is None
    assert not (tmp_path / "index.html").exists()


def test_a_step_is_compared_with_the_base_and_its_average_below_each_other(tmp_path: Path) -> None:
    make_set(tmp_path / "step_000000", {"a": 10, "b": 20})
    make_set(tmp_path / "step_000004", {"a": 30, "new": 40})
    make_set(tmp_path / "step_000004" / "ema", {"a": 50})
    write_gallery(tmp_path, tmp_path / "step_000004")
    rows = pixels(tmp_path / "step_000004" / "compare.png")
    row = CELL_HEIGHT + LABEL_HEIGHT
    assert rows.shape[0] == 3 * row
    assert rows[row - 9 :: row, 100, 0].tolist() == [10, 30, 50]
    write_gallery(tmp_path, tmp_path / "step_000000")
    assert not (tmp_path / "step_000000" / "compare.png").exists()


def test_the_contact_sheet_has_a_row_per_request_and_a_column_per_moment(tmp_path: Path) -> None:
    make_set(tmp_path / "step_000000", {"a": 10, "b": 20})
    make_set(tmp_path / "step_000004", {"a": 30})
    write_gallery(tmp_path)
    sheet = pixels(tmp_path / "contact_sheet.png")
    assert sheet.shape[:2] == (LABEL_HEIGHT + 2 * CELL_HEIGHT, SIDE_WIDTH + 2 * 320)
    middle = sheet[LABEL_HEIGHT + CELL_HEIGHT // 2]
    assert middle[[SIDE_WIDTH + 9, SIDE_WIDTH + 329], 0].tolist() == [10, 30]


def test_a_long_run_s_contact_sheet_keeps_to_some_steps_with_the_first_and_the_last(tmp_path: Path) -> None:
    for step in range(30):
        make_set(tmp_path / f"step_{step:06d}", {"a": step * 5}, frames=5)
    write_gallery(tmp_path)
    sheet = pixels(tmp_path / "contact_sheet.png")
    assert sheet.shape[1] == SIDE_WIDTH + 12 * 320
    assert sheet[90, SIDE_WIDTH + 9, 0] == 0
    assert sheet[90, -9, 0] == 29 * 5
    assert len(page_data(tmp_path)["moments"]) == 30


def test_writing_it_again_changes_no_file(tmp_path: Path) -> None:
    make_set(tmp_path / "step_000000", {"a": 10})
    make_set(tmp_path / "step_000004", {"a": 30})
    times = []
    for _ in range(2):
        write_gallery(tmp_path, tmp_path / "step_000004")
        times.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")})
    assert times[0] == times[1]
    assert tmp_path / "step_000004" / "compare.png" in times[0]


def test_steps_of_averaged_weights_alone_are_compared_with_what_they_began_from(tmp_path: Path) -> None:
    make_set(tmp_path / "step_000000" / "ema", {"a": 10})
    make_set(tmp_path / "step_000004" / "ema", {"a": 30})
    write_gallery(tmp_path, tmp_path / "step_000004")
    rows = pixels(tmp_path / "step_000004" / "compare.png")
    row = CELL_HEIGHT + LABEL_HEIGHT
    assert rows[row - 9 :: row, 100, 0].tolist() == [10, 30]
    assert [moment["base"] for moment in page_data(tmp_path)["moments"]] == [True, False]


def test_deleted_renders_are_left_out(tmp_path: Path) -> None:
    make_set(tmp_path / "step_000000", {"a": 10, "b": 20})
    make_set(tmp_path / "step_000002", {"a": 15})
    make_set(tmp_path / "step_000004", {"a": 30, "b": 40})
    make_set(tmp_path / "step_000004" / "ema", {"a": 50})
    for file in ("step_000000/a.png", "step_000002/a.mp4", "step_000004/ema/a.png"):
        (tmp_path / file).unlink()
    write_gallery(tmp_path, tmp_path / "step_000004")
    data = page_data(tmp_path)
    assert [moment["id"] for moment in data["moments"]] == ["step_000000", "step_000004"]
    shown = {
        request["name"]: {key: set(at) for key, at in request["at"].items()} for request in data["requests"]
    }
    assert shown == {
        "a": {"step_000004": {"live"}},
        "b": {"step_000000": {"live"}, "step_000004": {"live"}},
    }


def test_a_folder_whose_name_is_not_utf_8_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "out-\udcff" / "validation"
    make_set(root / "step_000000", {"a": 10})
    make_set(root / "lora-\udcfe", {"a": 30})
    write_gallery(root, root / "lora-\udcfe")
    data = page_data(root)
    assert data["run"] == "out-\udcff"
    assert data["requests"][0]["at"]["lora-\udcfe"]["live"]["src"] == "lora-%FE/a.mp4"
    assert (root / "lora-\udcfe" / "compare.png").is_file()
