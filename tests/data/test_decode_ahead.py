"""Clips come in order with their chunks, ahead of the reader but never further than memory allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from longcat_tune.data.decode_ahead import decode_ahead

CHUNK = 1000


def chunks_of(job: str, *, count: int = 3) -> Iterator[torch.Tensor]:
    for number in range(count):
        yield torch.full((CHUNK,), ord(job) + number, dtype=torch.uint8)


def read(clips) -> list[tuple[str, list[int]]]:
    return [(job, [int(chunk[0]) - ord(job) for chunk in chunks]) for job, chunks in clips]


def settles_at(wanted: int, count) -> bool:
    """Whether a count that threads raise comes to a value and stays there."""
    deadline = time.monotonic() + 60
    while count() < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    return count() == wanted


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_clip_comes_in_order_with_its_own_chunks(workers):
    assert read(decode_ahead("abcdefg", chunks_of, workers=workers)) == [
        (job, [0, 1, 2]) for job in "abcdefg"
    ]
    assert read(decode_ahead("", chunks_of, workers=workers)) == []


def test_chunks_are_decoded_in_threads_and_several_clips_at_a_time():
    together, threads = threading.Barrier(2, timeout=60), set()

    def decode(job: str) -> Iterator[torch.Tensor]:
        threads.add(threading.current_thread())
        together.wait()
        yield from chunks_of(job)

    assert len(read(decode_ahead("abcd", decode, workers=2))) == 4
    assert threading.current_thread() not in threads


def test_a_long_clip_waits_in_a_queue_of_bounded_bytes():
    decoded = []

    def decode(job: str) -> Iterator[torch.Tensor]:
        for chunk in chunks_of(job, count=100):
            decoded.append(job)
            yield chunk

    clips = decode_ahead("abcdef", decode, workers=2, max_bytes=12 * CHUNK)
    _, chunks = next(clips)
    # Four fit into each queue, and one more is in the decoder's hands; of each worker one clip is ahead.
    assert settles_at(2 * 5, lambda: len(decoded))
    assert set(decoded) == {"a", "b"}
    assert len(list(chunks)) == 100
    assert settles_at(100 + 2 * 5, lambda: len(decoded))
    clips.close()


def test_a_chunk_larger_than_the_queue_still_passes():
    assert read(decode_ahead("ab", chunks_of, workers=2, max_bytes=1)) == [("a", [0, 1, 2]), ("b", [0, 1, 2])]


def test_jobs_are_drawn_one_per_worker_ahead_of_the_clip_that_is_read():
    drawn = []
    clips = decode_ahead((drawn.append(job) or job for job in "abcdefg"), chunks_of, workers=2)
    next(clips)
    assert drawn == ["a", "b", "c"]
    next(clips)
    assert drawn == ["a", "b", "c", "d"]
    clips.close()


def test_an_error_comes_where_its_chunk_would_have_been():
    def decode(job: str) -> Iterator[torch.Tensor]:
        yield from chunks_of(job, count=2)
        if job == "b":
            raise ValueError("damaged")

    clips = decode_ahead("abc", decode)
    assert len(list(next(clips)[1])) == 2
    _, chunks = next(clips)
    assert [int(next(chunks)[0]) for _ in range(2)] == [ord("b"), ord("b") + 1]
    with pytest.raises(ValueError, match="damaged"):
        next(chunks)
    clips.close()


def test_closing_ends_all_threads_and_decoders_at_their_next_chunk():
    before, begun, ended = threading.active_count(), [], []

    def endless(job: str) -> Iterator[torch.Tensor]:
        begun.append(job)
        try:
            while True:
                yield torch.zeros(CHUNK, dtype=torch.uint8)
        finally:
            ended.append(job)

    clips = decode_ahead("abcd", endless, workers=2, max_bytes=10 * CHUNK)
    _, chunks = next(clips)
    next(chunks)
    assert settles_at(2, lambda: len(begun))
    clips.close()
    assert sorted(ended) == ["a", "b"]
    assert threading.active_count() == before


def test_a_clip_that_is_not_read_to_its_end_does_not_hold_up_the_next():
    clips = decode_ahead("abc", lambda job: chunks_of(job, count=50), workers=1, max_bytes=4 * CHUNK)
    assert [(job, int(next(chunks)[0])) for job, chunks in clips] == [(job, ord(job)) for job in "abc"]
