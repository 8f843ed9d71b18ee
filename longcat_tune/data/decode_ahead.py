"""Clips decoded ahead of their reader, by threads, in queues of chunks that do not grow with the clip.

Knows jobs only as something to decode, and chunks only by their size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from threading import Condition
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

WORKERS = 2
QUEUED_BYTES = 256 << 20

Job = TypeVar("Job")


def decode_ahead(
    jobs: Iterable[Job],
    decode: Callable[[Job], Generator[Tensor, None, None]],
    *,
    workers: int = WORKERS,
    max_bytes: int = QUEUED_BYTES,
) -> Generator[tuple[Job, Iterator[Tensor]], None, None]:
    """Give each clip with its chunks, in order, while threads decode this one and the next ones.

    Closing the generator, or asking it for the next clip, ends a clip that was not read to its end. Closing
    waits for the chunks that are being decoded and for no others.

    Args:
        jobs: the clips; drawn from in the reader's thread, one per worker ahead of the clip that is read.
        decode: yields the chunks of a clip; runs in a worker thread. What it raises is raised where its next
            chunk would have been read.
        workers: threads.
        max_bytes: of chunks that wait to be read, in all queues together; each queue holds at least one.

    Yields:
        A job and its chunks.
    """
    source, clips = iter(jobs), deque[tuple[Job, _ChunkQueue]]()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        while True:
            for job in islice(source, workers + 1 - len(clips)):
                queue = _ChunkQueue(max_bytes // (workers + 1))
                clips.append((job, queue))
                queue.filling = pool.submit(queue.fill, decode, job)
            if not clips:
                return
            job, queue = clips[0]
            yield job, queue.read()
            clips.popleft()
            queue.close()
    finally:
        # The waiting clips first: a thread whose clip is closed would begin the next of them.
        pool.shutdown(wait=False, cancel_futures=True)
        for _, queue in clips:
            queue.close()
        pool.shutdown(wait=True)


class _ChunkQueue:
    """The chunks of one clip between the thread that decodes it and the one that reads it.

    Attributes:
        filling: the call of `fill`, which holds what the decoder raised.
    """

    filling: Future[None]

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[Tensor] = deque()
        self._bytes = 0
        self._changed = Condition()
        self._complete = self._closed = False

    def fill(self, decode: Callable[[Job], Generator[Tensor, None, None]], job: Job) -> None:
        """Decode a clip, as fast as there is room, until its end or until nobody reads any more."""
        try:
            with closing(decode(job)) as chunks:
                all(map(self._put, chunks))  # until the first that nobody wants
        finally:
            with self._changed:
                self._complete = True
                self._changed.notify_all()

    def read(self) -> Iterator[Tensor]:
        """The chunks in order, each given up as it is handed out."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._complete)
                if not self._chunks:
                    break
                chunk = self._chunks.popleft()
                self._bytes -= chunk.nbytes
                self._changed.notify_all()
            yield chunk
        self.filling.result()

    def close(self) -> None:
        """Read no more: the decoder stops at its next chunk."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify_all()

    def _put(self, chunk: Tensor) -> bool:
        """Wait for room; False when the reader is gone."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._chunks or self._bytes + chunk.nbytes <= self._max_bytes
            )
            self._chunks.append(chunk)
            self._bytes += chunk.nbytes
            self._changed.notify_all()
            return not self._closed
