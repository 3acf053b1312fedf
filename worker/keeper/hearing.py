"""Whether rings still reach this worker: it rings its own doorbell once the scheduler has rung in vain.

A consumer that Celery lost, or that waits in a call that never returns, leaves a worker whose heartbeats go on and that
takes up nothing. Where its own ring comes back the fault was elsewhere; where Redis does not take it, that is Redis's.
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


class Verdict(StrEnum):
    """What is known of a worker's hearing."""

    WAITING = "waiting"  # its own ring is on its way
    HEARS = "hears"
    UNRUNG = "unrung"  # Redis does not take rings, which is nothing that a new worker would cure
    DEAF = "deaf"


@dataclass(frozen=True, slots=True)
class _Echo:
    token: str
    due_at: float
    """When it must have come back (monotonic seconds)."""


class Hearing:
    """Asked from one thread, told from another."""

    def __init__(self, app: Celery, slot_id: str, *, patience_seconds: float) -> None:
        """
        Args:
            app: to ring with.
            slot_id: whose doorbell it is.
            patience_seconds: a ring that takes longer than this to come back was not heard.
        """
        self._app, self._slot_id, self._patience_seconds = app, slot_id, patience_seconds
        self._lock = threading.Lock()
        self._echo: _Echo | None = None
        self._heard: str | None = None

    def is_echo(self, lease_id: str) -> bool:
        """Take what the doorbell brought; whether it was this worker's own ring and no lease."""
        if not lease_id.startswith(f"{_KIND}_"):
            return False
        with self._lock:
            self._heard = lease_id
        return True

    def check(self) -> Verdict:
        """Begin or go on finding out. Never blocks for long; to be asked again while it says `WAITING`."""
        with self._lock:
            echo, heard = self._echo, self._heard
            if echo is not None and heard == echo.token:
                self._echo = None
        if echo is None:
            return self._ring()
        if heard == echo.token:
            return Verdict.HEARS
        return Verdict.WAITING if time.monotonic() < echo.due_at else Verdict.DEAF

    def _ring(self) -> Verdict:
        token = new_id(_KIND)
        try:
            ring(self._app, self._slot_id, token)
        except ServiceUnavailable as error:
            logger.warning("%s", error.message)
            return Verdict.UNRUNG
        with self._lock:
            self._echo = _Echo(token, time.monotonic() + self._patience_seconds)
        return Verdict.WAITING
