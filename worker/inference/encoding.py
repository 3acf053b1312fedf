"""Encode rows on the CPU: all at once if the model's own library uses several threads, else row by row in a pool."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from jobs.data.rows import Row, RowError
from worker.device import use_threads
from worker.models.task_model import Encoded, EncodesRowByRow, TaskModel

_ROWS_AHEAD = 2
"""Rows per thread that are encoded, or being encoded, before the first of them is taken."""
_MOST_BYTES = 512 * 2**20
"""Most memory of rows that are encoded and not taken; with more, no thread begins with another row."""


class RowEncoder:
    """Encodes rows in order. A row that cannot be encoded gets an error.

    Rows of an `EncodesRowByRow` model are encoded in several threads. Each thread has its own tokenizers and
    processors, since two threads that share a tokenizer silently get wrong results.
    """

    def __init__(self, model: TaskModel, *, num_threads: int, row_error: Callable[[Exception], RowError]) -> None:
        """
        Args:
            model: The model whose `encode` is called.
            num_threads: Number of threads for an `EncodesRowByRow` model; other models use the caller's thread.
            row_error: Converts an exception that `encode` raises for one row; raises if it does not concern a row.
        """
        self._model = model
        self._row_error = row_error
        self._num_threads = num_threads
        self._of_thread = threading.local()
        self._thread_numbers = itertools.count()
        self._row_by_row = model if isinstance(model, EncodesRowByRow) else None
        self._pool: ThreadPoolExecutor | None = None
        self._begun_rows: Sequence[Row] = ()
        """The rows of the following chunk, if threads have begun with it."""
        self._begun: deque[Future[list[Encoded]]] = deque()
        """The first of `_begun_rows`, encoded or being encoded."""
        if self._row_by_row is not None and num_threads > 1:
            self._pool = ThreadPoolExecutor(num_threads, "feed-encode")

    def encode(self, rows: Sequence[Row], following: Callable[[], Sequence[Row]] = tuple) -> Iterator[Encoded]:
        """Encode the rows of a chunk. Rows of an `EncodesRowByRow` model are returned as soon as they are ready.

        Args:
            rows: The rows of the chunk.
            following: Returns the rows of the chunk whose `encode` is called next, if they are known already. Threads
                that have nothing left to do for this chunk begin with them.

        Raises:
            StokerError: The error does not concern a single row.
        """
        if self._pool is not None:
            yield from self._in_pool(self._pool, rows, following)
        elif self._row_by_row is not None:
            for row in rows:
                yield from self._encoded(self._model, [row])
        elif rows:
            yield from self._encoded(self._model, rows)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _in_pool(
        self, pool: ThreadPoolExecutor, rows: Sequence[Row], following: Callable[[], Sequence[Row]]
    ) -> Iterator[Encoded]:
        ahead = self._take_begun(rows)
        remaining = iter(rows[len(ahead) :])
        try:
            for _ in rows:
                while self._has_room(ahead):
                    row = next(remaining, None)
                    if row is not None:
                        ahead.append(pool.submit(self._encoded_in_thread, row))
                    elif not self._begin(pool, following):
                        break
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _has_room(self, ahead: deque[Future[list[Encoded]]]) -> bool:
        """Whether a thread may begin with another row. The size of a row is known only when it is encoded."""
        waiting = [*ahead, *self._begun]
        finished = (future for future in waiting if future.done() and future.exception() is None)
        num_bytes = sum(one.num_bytes for future in finished for one in future.result())
        return len(waiting) <= _ROWS_AHEAD * self._num_threads and num_bytes <= _MOST_BYTES

    def _take_begun(self, rows: Sequence[Row]) -> deque[Future[list[Encoded]]]:
        """The first of these rows, as far as threads have begun with them; others that they began with are dropped."""
        begun_rows, begun = self._begun_rows, self._begun
        self._begun_rows, self._begun = (), deque()
        if begun_rows is rows:
            return begun
        for future in begun:
            future.cancel()
        return deque()

    def _begin(self, pool: ThreadPoolExecutor, following: Callable[[], Sequence[Row]]) -> bool:
        """Begin with one row more of the following chunk. Returns whether there was one."""
        if not self._begun_rows:
            self._begun_rows = following()
        if len(self._begun) == len(self._begun_rows):
            return False
        self._begun.append(pool.submit(self._encoded_in_thread, self._begun_rows[len(self._begun)]))
        return True

    def _encoded_in_thread(self, row: Row) -> list[Encoded]:
        # Not in the pool's `initializer`: an exception there breaks the pool, and its cause is lost.
        if not hasattr(self._of_thread, "model"):
            assert self._row_by_row is not None
            use_threads(1)  # the other cores encode other rows
            self._of_thread.model = self._row_by_row.for_thread(next(self._thread_numbers))
        return self._encoded(self._of_thread.model, [row])

    def _encoded(self, model: TaskModel, rows: Sequence[Row]) -> list[Encoded]:
        try:
            encoded = model.encode(rows)
            if len(encoded) == len(rows):
                return encoded
            raise ValueError(f"{len(rows)} rows were encoded to {len(encoded)}")
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer raises is the row's error
            row_error = self._row_error(error)
        if len(rows) == 1:
            return [Encoded(row=rows[0], num_tokens=0, features=None, error=row_error)]
        middle = len(rows) // 2
        return [*self._encoded(model, rows[:middle]), *self._encoded(model, rows[middle:])]
