"""Problems are told one per line, thousands of one kind stay readable, and machines get them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_tune.config.values import check_num_frames
from longcat_tune.errors import ConfigError, DataError, UserError
from longcat_tune.runs.problems import (
    SHOWN_OF_A_KIND,
    Problem,
    collected,
    config_problems,
    counted,
    problem_lines,
    raise_problems,
)
from longcat_tune.types import Refusal


def without_caption(number: int, *, folder: str = "/data") -> Problem:
    path = Path(folder) / f"walk {number}.mp4"
    reason = f"has no caption: {path.with_suffix('.txt')} does not exist"
    return Problem.of_refusal(Refusal("clips", path, reason, "write its caption there"))


def too_short(number: int) -> Problem:
    path = Path(f"/data/sub {number}/a.mp4")
    reason = f"has {number} frames at 29.97 fps, fewer than video.num_frames (93)"
    return Problem.of_refusal(Refusal("clips", path, reason, f"lower video.num_frames to {number}"))


def test_a_line_names_dataset_file_reason_and_remedy() -> None:
    assert without_caption(7).text == (
        "clips: /data/walk 7.mp4 has no caption: /data/walk 7.txt does not exist; write its caption there"
    )


def test_an_error_is_cut_where_its_remedy_begins() -> None:
    problem = Problem.of_error(UserError("lora_rank (0): must be 1; or more; use 8"))
    assert (problem.reason, problem.remedy) == ("lora_rank (0): must be 1; or more", "use 8")
    assert problem.text == "lora_rank (0): must be 1; or more; use 8"
    assert Problem.of_error(UserError("no remedy")).as_json() == {
        "file": None,
        "reason": "no remedy",
        "remedy": "",
        "dataset": None,
    }


def test_a_thousand_of_a_kind_are_shown_by_the_first_fifty() -> None:
    problems = [one for number in range(1000) for one in (without_caption(number), too_short(number))]
    lines = problem_lines(problems)
    assert len(lines) == 2 * SHOWN_OF_A_KIND + 2
    more = "clips: and 950 more of this kind; `check --json` lists all"
    shown = [without_caption(number).text for number in range(SHOWN_OF_A_KIND)]
    assert lines[: SHOWN_OF_A_KIND + 1] == [*shown, more]
    assert lines[-1] == more
    assert counted(len(problems)) == "2,000 problems"


def test_another_dataset_or_another_reason_is_another_kind() -> None:
    one = without_caption(1)
    other_dataset = Problem(one.reason, one.remedy, one.file, "walks")
    empty = Problem("has no caption: /data/walk 1.txt is empty", one.remedy, one.file, one.dataset)
    problems = [one] * SHOWN_OF_A_KIND + [other_dataset] * SHOWN_OF_A_KIND + [empty] * SHOWN_OF_A_KIND
    assert problem_lines(problems) == [problem.text for problem in problems]


def test_folders_and_extensions_make_no_kinds_of_their_own() -> None:
    assert without_caption(1, folder="/data/a b/c").kind == without_caption(2, folder="/data/d").kind
    one, other = (
        Problem(
            f"has no conditioning image; tried /stills/x/{name}.{{png,jpg}}", "", Path(f"/clips/{name}.mp4")
        )
        for name in ("a", "long name")
    )
    assert one.kind == other.kind


def test_a_name_with_a_line_break_stays_on_its_line() -> None:
    problem = Problem("is empty", "replace it", Path("/data/a\nb.mp4"), "clips")
    assert problem.text == r"clips: /data/a\nb.mp4 is empty; replace it"
    assert problem.as_json()["file"] == "/data/a\nb.mp4"


def test_what_a_config_file_has_wrong_comes_one_by_one() -> None:
    error = ConfigError("2 problems:\n  data.json: id (a) twice; rename\n  data.json: id (b) twice; rename")
    assert [problem.reason for problem in config_problems(error)] == [
        "data.json: id (a) twice",
        "data.json: id (b) twice",
    ]
    [alone] = config_problems(ConfigError("data.json: lists no datasets; add one"))
    assert alone.remedy == "add one"


def test_only_what_a_user_can_fix_is_collected() -> None:
    errors: list[UserError] = []
    with collected(errors):
        raise DataError("a")
    with pytest.raises(ValueError, match="4k"), collected(errors):
        check_num_frames(50)
    assert [str(error) for error in errors] == ["a"]


def test_problems_stop_a_run_with_their_list_or_with_their_number() -> None:
    raise_problems([])
    problems = [without_caption(1), without_caption(2)]
    with pytest.raises(DataError) as error:
        raise_problems(problems)
    assert str(error.value).splitlines() == [
        "2 problems; `longcat-tune check` shows the whole picture:",
        *(f"  {problem.text}" for problem in problems),
    ]
    with pytest.raises(DataError, match=r"^1 problem; each is listed above with its remedy$"):
        raise_problems(problems[:1], told=True)
