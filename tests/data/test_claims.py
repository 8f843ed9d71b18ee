"""Claims are tried by real processes: POSIX locks mean nothing between threads of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from longcat_tune.data.claims import LOCK_NAME, Claims, make_once
from longcat_tune.errors import UserError

HOLD = """
import sys
from pathlib import Path
from longcat_tune.data.claims import Claims
claims = Claims()
print(*(claims.take(Path(name)) for name in sys.argv[1:]), flush=True)
for line in sys.stdin:
    claims.release(Path(line.strip()))
    print("released", flush=True)
"""

WAITING = "longcat_tune.data.claims.time.sleep"
"""What a process does between two looks at others' work; tests do that work meanwhile."""


@dataclass(frozen=True)
class File:
    path: Path


@contextmanager
def holder(*paths: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that claims these files; it prints what it got and gives back what it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def files(folder: Path, names: str) -> list[File]:
    return [File(folder / name) for name in names]


def write(job: File) -> None:
    job.path.parent.mkdir(exist_ok=True)
    job.path.write_text("made here")


def run(jobs: list[File], *, make=None) -> tuple[int, list[str], list[str]]:
    """How many were made here, their names, and the names of all that are done, in order."""
    made, done = [], []

    def make_here(claimed: Iterable[File]) -> Iterator[File]:
        for job in claimed:
            write(job)
            made.append(job.path.name)
            yield job

    count = make_once(
        jobs,
        is_there=lambda job: job.path.exists(),
        make=make or make_here,
        on_done=lambda job: done.append(job.path.name),
    )
    return count, made, done


def test_a_claim_excludes_other_processes_until_it_is_given_back(tmp_path):
    claims = Claims()
    assert claims.take(tmp_path / "a")
    assert claims.take(tmp_path / "b")
    claims.release(tmp_path / "b")
    with holder(tmp_path / "a", tmp_path / "b", tmp_path / "c") as other:
        assert told(other) == "False True True"
        assert [claims.take(tmp_path / name) for name in "abc"] == [True, False, False]
    claims.close()


def test_claims_of_a_killed_process_are_free(tmp_path):
    with holder(tmp_path / "a") as other:
        assert told(other) == "True"
        mine = Claims()
        assert not mine.take(tmp_path / "a")
        other.kill()
        other.wait()
        assert mine.take(tmp_path / "a")
        mine.close()


def test_closing_gives_all_claims_back(tmp_path):
    mine = Claims()
    assert mine.take(tmp_path / "a")
    assert mine.take(tmp_path / "more" / "b")
    mine.close()
    with holder(tmp_path / "a", tmp_path / "more" / "b") as other:
        assert told(other) == "True True"


def test_every_file_is_made_and_told_once_in_order(tmp_path):
    (tmp_path / "b").write_text("made before")
    assert run(files(tmp_path, "abc")) == (2, ["a", "c"], ["a", "b", "c"])
    assert run(files(tmp_path, "abc")) == (0, [], ["a", "b", "c"])
    assert (tmp_path / "b").read_text() == "made before"


def test_what_another_process_has_is_left_to_it(tmp_path, monkeypatch, caplog):
    jobs = files(tmp_path, "abcd")
    with holder(*(tmp_path / name for name in "ac")) as other, caplog.at_level("INFO"):
        assert told(other) == "True True"

        def finish(_: float) -> None:
            for name in "ca":
                (tmp_path / name).write_text("made there")
                print(tmp_path / name, file=other.stdin, flush=True)
                told(other)

        monkeypatch.setattr(WAITING, finish)
        count, made, done = run(jobs)
    assert (count, made, sorted(done)) == (2, ["b", "d"], ["a", "b", "c", "d"])
    assert [(tmp_path / name).read_text() for name in "ac"] == ["made there"] * 2
    assert caplog.messages == ["Another process is filling the same cache; it has 2 of the files"]


def test_what_a_process_leaves_unfinished_when_it_ends_is_made_here(tmp_path, monkeypatch):
    with holder(tmp_path / "a") as other:
        assert told(other) == "True"

        def end(_: float) -> None:
            other.kill()
            other.wait()

        monkeypatch.setattr(WAITING, end)
        assert run(files(tmp_path, "ab")) == (2, ["b", "a"], ["b", "a"])


def test_nothing_is_claimed_while_it_waits_for_another_process(tmp_path, monkeypatch):
    seen = []

    def look(_: float) -> None:
        with holder(tmp_path / "b", tmp_path / "c") as third:
            seen.append(told(third))
        owner.kill()
        owner.wait()

    monkeypatch.setattr(WAITING, look)
    with holder(tmp_path / "a") as owner:
        assert told(owner) == "True"
        run(files(tmp_path, "abc"))
    assert seen == ["True True"]


def test_a_failure_gives_the_claims_back_and_closes_the_maker(tmp_path):
    closed = []

    def fail(claimed: Iterable[File]) -> Iterator[File]:
        try:
            first, _, _ = claimed
            write(first)
            yield first
            raise ValueError("unusable")
        finally:
            closed.append(True)

    with pytest.raises(ValueError, match="unusable"):
        run(files(tmp_path, "abc"), make=fail)
    assert closed == [True]
    with holder(tmp_path / "b") as other:
        assert told(other) == "True"


def test_an_interruption_between_two_files_closes_the_maker_at_once(tmp_path):
    closed = []

    def make(claimed: Iterable[File]) -> Iterator[File]:
        try:
            for job in claimed:
                write(job)
                yield job
        finally:
            closed.append(True)

    def interrupt(_: File) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        make_once(files(tmp_path, "ab"), is_there=lambda _: False, make=make, on_done=interrupt)
    # What was caught still holds on to the maker.
    assert (closed, caught.type) == ([True], KeyboardInterrupt)


def test_a_file_finished_between_the_look_and_the_claim_is_not_made_again(tmp_path, monkeypatch):
    take = Claims.take

    def finished_meanwhile(self: Claims, path: Path) -> bool:
        path.write_text("made there")
        return take(self, path)

    monkeypatch.setattr(Claims, "take", finished_meanwhile)
    assert run(files(tmp_path, "a")) == (0, [], ["a"])
    with holder(tmp_path / "a") as other:
        assert told(other) == "True"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(UserError, match=rf"cannot write {LOCK_NAME} in .*cache: "):
        Claims().take(tmp_path / "cache" / "a")
