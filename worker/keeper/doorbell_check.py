"""Whether rings still reach this worker: it rings its own doorbell after it missed rings of the scheduler.

If Celery loses its consumer, or the consumer waits in a call that never returns, the worker still sends heartbeats but
starts no lease. If the worker's own ring comes back, the cause was elsewhere; if Redis refuses it, the cause is Redis.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from enum import StrEnum

from celery import Celery

from jobs.db.ids import new_id
from jobs.errors import ServiceUnavailable
from jobs.queue import ring

logger = logging.getLogger(__name__)

_KIND = "echo"


class DoorbellState(StrEnum):
    """Whether rings reach a worker, as far as known."""

    WAITING = "waiting"  # its own ring is on its way
    WORKS = "works"
    NOT_RUNG = "not_rung"  # Redis refuses rings, which a new worker would not change
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class _Echo:
    token: str
    due_at: float
    """When the ring must have come back (monotonic seconds)."""


class DoorbellCheck:
    """Finds out whether rings reach this worker. One thread checks, and another reports the rings that arrive."""

    def __init__(self, app: Celery, slot_id: str, *, echo_seconds: float) -> None:
        """
        Args:
            app: The Celery app to ring with.
            slot_id: The slot whose doorbell is rung.
            echo_seconds: How long a ring may take to come back; after that the worker has lost its doorbell.
        """
        self._app, self._slot_id, self._echo_seconds = app, slot_id, echo_seconds
        self._lock = threading.Lock()
        self._echo: _Echo | None = None
        self._received: str | None = None

    def is_echo(self, lease_id: str) -> bool:
        """Whether a message of the doorbell is this worker's own ring instead of a lease. Records such a ring."""
        if not lease_id.startswith(f"{_KIND}_"):
            return False
        with self._lock:
            self._received = lease_id
        return True

    def check(self) -> DoorbellState:
        """Start or continue the check. Does not block for long; call it again while it returns `WAITING`."""
        with self._lock:
            echo, received = self._echo, self._received
            if echo is not None and received == echo.token:
                self._echo = None
        if echo is None:
            return self._ring()
        if received == echo.token:
            return DoorbellState.WORKS
        return DoorbellState.WAITING if time.monotonic() < echo.due_at else DoorbellState.LOST

    def _ring(self) -> DoorbellState:
        token = new_id(_KIND)
        try:
            ring(self._app, self._slot_id, token)
        except ServiceUnavailable as error:
            logger.warning("%s", error.message)
            return DoorbellState.NOT_RUNG
        with self._lock:
            self._echo = _Echo(token, time.monotonic() + self._echo_seconds)
        return DoorbellState.WAITING
