"""Bounded channels between threads, and threads whose exceptions are kept for the caller that joins them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The channel brings or takes nothing more."""


class Channel(Generic[T]):
    """A bounded queue that either side can end, so that no thread waits for one that has ended.

    After `finish`, the items inside can still be taken. `cancel` ends the channel at once for both sides.
    """

    def __init__(self, capacity: int, *, most_bytes: int = 0, size: Callable[[T], int] = lambda _: 0) -> None:
        """
        Args:
            capacity: Most items inside.
            most_bytes: Most memory of the items inside; a single item may take more.
            size: The memory that an item takes, in bytes.
        """
        self._capacity = capacity
        self._most_bytes = most_bytes
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._cancelled = False

    def put(self, item: T) -> None:
        """Add an item, waiting while the channel is full.

        Raises:
            Closed: The channel was finished or cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(item) or self._finished or self._cancelled)
            if self._finished or self._cancelled:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, give_up: Callable[[], bool] = lambda: False) -> T:
        """Take the oldest item, waiting while there is none.

        Args:
            give_up: Called before anything is taken and after each `wake`; True ends the wait.

        Raises:
            Closed: Nothing more will come, or `give_up` returned True.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._finished or self._cancelled or give_up())
            if self._cancelled or give_up() or not self._items:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def peek(self) -> T | None:
        """The item that the next `get` takes, or None if there is none yet. Only for the channel's only consumer."""
        with self._changed:
            return self._items[0] if self._items else None

    def get_all(self) -> list[T]:
        """Take all items, waiting for at least one.

        Raises:
            Closed: Nothing more will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._finished or self._cancelled)
            if self._cancelled or not self._items:
                raise Closed
            items = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return items

    def __iter__(self) -> Iterator[T]:
        """Take items until the channel is closed."""
        while True:
            try:
                item = self.get()
            except Closed:
                return
            yield item

    @property
    def is_empty(self) -> bool:
        """Whether a `get` would have to wait now."""
        with self._changed:
            return not self._items

    def has_room(self, item: T) -> bool:
        """Whether a `put` of an item would not have to wait now."""
        with self._changed:
            return self._has_room(item)

    def _has_room(self, item: T) -> bool:
        num_bytes = self._size(item) + sum(map(self._size, self._items))
        return not self._items or (len(self._items) < self._capacity and num_bytes <= self._most_bytes)

    def wake(self) -> None:
        """Make waiting `get`s call their `give_up` again."""
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> None:
        """Declare that no more items will be added; those inside can still be taken."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """End the channel at once for both sides; the items inside are dropped."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()


class Stages:
    """Threads that work together: when one fails, the others are stopped, and the first exception is kept."""

    def __init__(self, name: str, on_failure: Callable[[], None], begin: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            name: Prefix of the threads' names.
            on_failure: Stops the other threads by cancelling their channels; called in the thread that failed.
            begin: Called first in each thread.
        """
        self._name = name
        self._on_failure = on_failure
        self._begin = begin
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def start(self, *bodies: Callable[[], None]) -> None:
        """Run each body in its own thread."""
        for body in bodies:
            # Daemon threads, so that a read that hangs in the kernel cannot keep a runner from exiting.
            thread = threading.Thread(target=self._run, args=(body,), name=f"{self._name}{body.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self) -> BaseException | None:
        """Wait until every thread has ended.

        Returns:
            The first exception that ended one of them, or None.
        """
        for thread in self._threads:
            thread.join()
        return self._error

    def _run(self, body: Callable[[], None]) -> None:
        try:
            self._begin()
            body()
        except Closed:
            return  # the thread that closed the channel has the reason
        except BaseException as error:  # noqa: BLE001 - the end of the thread: `join` returns it to the caller
            with self._lock:
                if self._error is None:
                    self._error = error
            self._on_failure()
