"""The request to stop that the keeper relays to a running lease, safe to use from any thread, and how a lease ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from jobs.db.states import StopReason


class Outcome(StrEnum):
    """How a lease ended in order."""

    DRAINED = "drained"  # nothing was left to claim
    STOPPED = "stopped"  # a stop was requested; the rest of the work is pending again


class Stop:
    """A flag with a reason. A later, stronger reason replaces a weaker one; a request is never withdrawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: StopReason | None = None
        self._requested = threading.Event()
        self._listeners: list[Callable[[], None]] = []

    def request(self, reason: StopReason) -> None:
        """Request a stop."""
        strength = list(StopReason)
        with self._lock:
            if self._reason is None or strength.index(reason) > strength.index(self._reason):
                self._reason = reason
            listeners = list(self._listeners)
        self._requested.set()
        for listener in listeners:
            listener()

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested.is_set()

    @property
    def reason(self) -> StopReason | None:
        """The strongest reason so far, or None."""
        with self._lock:
            return self._reason

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Block until a stop is requested or the time has passed; True if one was requested."""
        return self._requested.wait(timeout_seconds)

    @contextmanager
    def notifying(self, listener: Callable[[], None]) -> Iterator[None]:
        """Inside, `listener` is called on each request by the requesting thread, and at once if one came before.

        It must not block; its purpose is to wake a thread that waits for something else.
        """
        with self._lock:
            self._listeners.append(listener)
            is_requested = self._reason is not None
        try:
            if is_requested:
                listener()
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
