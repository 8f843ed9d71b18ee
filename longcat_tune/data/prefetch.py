"""Background threads that work ahead of their consumer; knows nothing of clips or batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 1, ahead: int = 1
) -> Generator[Result, None, None]:
    """Apply a function in background threads while the consumer works on earlier results; in order.

    What the function raises is raised where its result would have come. Closing the generator, or an error,
    waits for the calls that are running and starts no other.

    Args:
        function: called in the background threads only.
        items: may be endless; drawn from in the consumer's thread.
        workers: threads.
        ahead: results made, or being made, beyond the one handed out.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
