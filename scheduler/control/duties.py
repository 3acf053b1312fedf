"""Runs duties periodically, in lanes: each lane has a thread of its own, so a long duty delays only its own lane."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.errors import ServiceUnavailable
from jobs.retries import Backoff

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 30.0  # longest pause of a duty that keeps failing
_GAP_SECONDS = 0.02
"""Least time between two rounds of a lane, so that hundreds of small jobs a second share rounds. A round that comes
later than this after the last one begins at once."""


@dataclass(slots=True)
class Duty:
    """Something that the leader does periodically."""

    name: str
    run: Callable[[], object]
    every_seconds: float
    on_wake: bool
    """Whether a wake-up triggers it at once."""
    due_at: float = 0.0
    """Time of the next run, monotonic seconds."""
    failures: int = 0
    """Number of failures in a row."""


class Lane:
    """Duties that run one after the other, in order, in one thread."""

    def __init__(
        self, name: str, duties: Sequence[Duty], *, first_pause_seconds: float, is_wanted: Callable[[], bool]
    ) -> None:
        """
        Args:
            name: Name of the thread.
            duties: The duties, in the order in which they run when several are due.
            first_pause_seconds: Pause after a duty's first failure; it doubles with each further one.
            is_wanted: Called before each duty; the lane ends once it returns False.
        """
        self._duties, self._first_pause_seconds, self._is_wanted = duties, first_pause_seconds, is_wanted
        self._rung = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Run all duties now, and then whenever they are due, until `stop`."""
        self._thread.start()

    def wake(self) -> None:
        """Run the duties that react to wake-ups, at once or right after the present ones. Many calls count as one."""
        self._rung.set()

    def stop(self) -> None:
        """Start no more duties. Returns when the present one is done."""
        self._stopping.set()
        self._rung.set()
        self._thread.join()

    def _run(self) -> None:
        is_woken = True
        while True:
            if is_woken:  # otherwise a wake-up that came just now would be lost
                self._rung.clear()
            if not self._goes_on():
                return
            began = time.monotonic()
            self._do(is_woken=is_woken)
            next_due = min(duty.due_at for duty in self._duties)
            is_woken = self._rung.wait(max(0.0, next_due - time.monotonic()))
            if is_woken:
                self._stopping.wait(max(0.0, began + _GAP_SECONDS - time.monotonic()))

    def _goes_on(self) -> bool:
        return not self._stopping.is_set() and self._is_wanted()

    def _do(self, *, is_woken: bool) -> None:
        for duty in self._duties:
            is_due = time.monotonic() >= duty.due_at
            if not is_due and not (is_woken and duty.on_wake and not duty.failures):
                continue
            if not self._goes_on():
                return
            try:
                duty.run()
            except ServiceUnavailable as error:
                duty.failures += 1
                logger.warning("%s: %s", duty.name, error)
            except Exception:  # the service's duty loop: one duty's fault must not stop the others
                duty.failures += 1
                logger.exception("%s failed", duty.name)
            else:
                duty.failures = 0
            pause_seconds = duty.every_seconds
            if duty.failures:
                backoff = Backoff(self._first_pause_seconds, max(pause_seconds, _LONGEST_PAUSE_SECONDS))
                pause_seconds = backoff.delay_seconds(duty.failures)
            duty.due_at = time.monotonic() + pause_seconds
