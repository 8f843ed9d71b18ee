"""Reading a file of events that somebody else writes: what is given, what is waited for, what begins anew."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from longcat_tune.server.events import CHUNK, EventsReader


def line(step: int, **fields: Any) -> str:
    return json.dumps({"event": "step", "step": step, **fields}) + "\n"


def start(time: float = 1.0) -> str:
    return json.dumps({"event": "run_start", "time": time}) + "\n"


def steps(events: tuple[dict[str, Any], ...]) -> list[int]:
    return [event["step"] for event in events if event["event"] == "step"]


def read_all(reader: EventsReader) -> list[int]:
    found, more = [], True
    while more:
        read = reader.read()
        found += steps(read.events)
        more = read.more
    return found


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_missing_file_is_waited_for(tmp_path):
    reader = EventsReader(tmp_path / "events.jsonl")
    assert reader.read().events == ()
    append(reader.path, start() + line(1))
    read = reader.read()
    assert steps(read.events) == [1]
    assert not read.replaced


def test_only_what_is_new_is_given(tmp_path):
    reader = EventsReader(tmp_path / "events.jsonl")
    append(reader.path, start() + line(1))
    assert steps(reader.read().events) == [1]
    assert reader.read().events == ()
    append(reader.path, line(2))
    read = reader.read()
    assert steps(read.events) == [2]
    assert read.offset == reader.path.stat().st_size


def test_half_a_line_is_waited_for(tmp_path):
    reader = EventsReader(tmp_path / "events.jsonl")
    text = start() + line(1) + line(2)
    for place in range(0, len(text), 7):
        append(reader.path, text[place : place + 7])
        assert steps(reader.read().events) in ([], [1], [2])
    assert reader.offset == len(text)


def test_any_offset_behind_a_line_goes_on_from_there(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, start() + "".join(line(step) for step in range(1, 5)))
    first = EventsReader(path)
    first.read()
    append(path, line(5))
    again = EventsReader(path, offset=first.offset, identity=first.identity)
    assert steps(again.read().events) == [5]


def test_an_offset_that_was_made_up_begins_the_file_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, start() + line(1))
    for offset in (3, 10**12):
        read = EventsReader(path, offset=offset).read()
        assert read.replaced
        assert steps(read.events) == [1]


def test_a_file_in_the_place_of_another_begins_anew(tmp_path):
    reader = EventsReader(tmp_path / "events.jsonl")
    append(reader.path, start(1.0) + line(1) + line(2))
    reader.read()
    # As long as the other: only its beginning tells that it is new.
    reader.path.write_text(start(2.0) + line(7) + line(8))
    read = reader.read()
    assert read.replaced
    assert steps(read.events) == [7, 8]
    reader.path.unlink()
    assert reader.read().events == ()
    reader.path.write_text(start(3.0))
    assert reader.read().replaced


def test_a_line_cut_off_a_torn_file_changes_nothing(tmp_path):
    reader = EventsReader(tmp_path / "events.jsonl")
    append(reader.path, start() + line(1) + '{"event": "st')
    assert steps(reader.read().events) == [1]
    # What a resumed run does first.
    reader.path.write_text(start() + line(1))
    append(reader.path, line(2))
    read = reader.read()
    assert not read.replaced
    assert steps(read.events) == [2]


def test_lines_that_are_no_events_are_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}\n\xff\xfe\n[1]\n{}\n{"event": 3}\n"x"\n\n')
    append(path, line(2))
    assert read_all(EventsReader(path)) == [1, 2]


def test_numbers_that_are_no_json_become_nothing(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "step", "step": 1, "loss": NaN, "grad_norm": -Infinity, "seconds": 1e999}\n')
    (event,) = EventsReader(path).read().events
    assert event == {"event": "step", "step": 1, "loss": None, "grad_norm": None, "seconds": None}


def test_many_events_come_in_chunks_and_none_is_lost(tmp_path):
    path = tmp_path / "events.jsonl"
    generator = random.Random(0)
    long = {7: CHUNK - 40, 5000: 3 * CHUNK}
    sizes = [long.get(step, generator.randrange(200)) for step in range(10_000)]
    path.write_text("".join(line(step, text="x" * size) for step, size in enumerate(sizes)))
    assert path.stat().st_size > 8 * CHUNK
    assert read_all(EventsReader(path)) == list(range(10_000))
