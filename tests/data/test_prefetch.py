"""Work ahead keeps order, stays bounded, and passes errors and the end of the consumer on."""

from __future__ import annotations

import itertools
import threading

import pytest

from longcat_tune.data.prefetch import mapped_ahead


def test_results_come_in_order_and_complete():
    assert list(mapped_ahead(lambda n: n * n, range(7), ahead=2)) == [n * n for n in range(7)]
    assert list(mapped_ahead(lambda n: n, [], ahead=2)) == []


def test_the_next_item_is_made_while_the_consumer_works_and_no_more():
    made = {n: threading.Event() for n in range(6)}
    results = mapped_ahead(lambda n: made[n].set(), range(6), ahead=1)
    next(results)
    assert made[1].wait(60)
    assert not made[2].wait(0.05)
    results.close()


def test_several_workers_work_at_once_and_keep_the_order():
    together = threading.Barrier(3, timeout=60)

    def slow_first(n: int) -> int:
        if n < 3:
            together.wait()
        if n == 0:
            made_later.wait(60)
        if n == 2:
            made_later.set()
        return n

    made_later = threading.Event()
    results = mapped_ahead(slow_first, itertools.count(), workers=3, ahead=4)
    assert list(itertools.islice(results, 6)) == [0, 1, 2, 3, 4, 5]
    results.close()


def test_an_error_comes_where_its_result_would_have():
    def fail_at_two(n: int) -> int:
        if n == 2:
            raise ValueError("item 2")
        return n

    results = mapped_ahead(fail_at_two, itertools.count(), ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_an_endless_one_ends_its_threads(workers):
    results = mapped_ahead(
        lambda n: threading.current_thread(), itertools.count(), workers=workers, ahead=workers
    )
    threads = set(itertools.islice(results, 20))
    assert threading.current_thread() not in threads
    results.close()
    assert not any(thread.is_alive() for thread in threads)
