"""Makes forecasts beside the leader's passes, in a thread of its own that waits while a pass runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from sqlalchemy import exists, func, or_, select
from sqlmodel import Session, col

from jobs.config.limits import Limits
from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import ForecastRecord, Job
from jobs.errors import ServiceUnavailable
from jobs.ledger.timing import forecasts
from scheduler.control.forecast_state import read_state

logger = logging.getLogger(__name__)

FORECAST_SECONDS = 10.0
"""The longest time between two forecasts while there are jobs."""
_LEAST_PAUSE_SECONDS = 1.0
_PAUSES_PER_RUN = 9  # so that forecasts take at most a tenth of one core
_CUT_OFF_SECONDS = 1.0  # time for a running forecast at shutdown; it is made again
_LOOK_SECONDS = 0.2  # how often a forecast that waits for a pass looks whether it is still wanted


class Forecaster:
    """Makes forecasts when it is due, for as long as its `with` block lasts."""

    def __init__(
        self,
        db: Database,
        times: LeaseTimes,
        limits: Limits,
        is_wanted: Callable[[], bool],
        *,
        resting: threading.Event,
    ) -> None:
        """
        Args:
            is_wanted: Called between the steps of a forecast; False ends it.
            resting: Set while the leader makes no pass; a forecast works only then.
        """
        self._db = db
        self._times, self._limits = times, limits
        self._is_wanted = is_wanted
        self._resting = resting
        self._woken = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="forecasts", daemon=True)
        self._newest_job: float | None = None
        self._due_at = 0.0
        self._not_before = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._woken.set()
        self._thread.join(_CUT_OFF_SECONDS)

    def wake_if_due(self) -> None:
        """Start a forecast soon after a job was queued, and otherwise at times, as long as there are jobs."""
        now = time.monotonic()
        if self._woken.is_set() or now < self._not_before:
            return
        with self._db.read() as session:
            newest = _newest_queued(session)
            is_due = newest != self._newest_job if now < self._due_at else bool(session.scalar(_HAS_WORK))
        if is_due:
            self._woken.set()

    def make(self) -> None:
        """Compare earlier forecasts with what happened, make new ones and keep them.

        Raises:
            InterruptedError: The forecast is no longer wanted.
        """
        began = time.monotonic()
        with self._db.write() as tx:
            forecasts.compare(tx)
        with self._db.read() as session:
            self._newest_job = _newest_queued(session)
            state = read_state(session, self._times, self._limits)
        spans = state.spans(before_pass=self._wait_for_rest)
        made = {work.job.id: state.said(work.job.rank, spans[work.job.id]) for work in state.works}
        with self._db.write() as tx:
            forecasts.keep(tx, made)
        now = time.monotonic()
        self._not_before = now + max(_LEAST_PAUSE_SECONDS, (now - began) * _PAUSES_PER_RUN)
        self._due_at = max(now + FORECAST_SECONDS, self._not_before)

    def _work(self) -> None:
        while True:
            self._woken.wait()
            if self._closed:
                return
            try:
                self.make()
            except InterruptedError:
                return
            except ServiceUnavailable as error:
                logger.warning("cannot make a forecast: %s", error)
                self._not_before = time.monotonic() + FORECAST_SECONDS
            except Exception:  # an edge: a fault in forecasts must not end them, nor the scheduler
                logger.exception("a forecast failed")
                self._not_before = time.monotonic() + FORECAST_SECONDS
            self._woken.clear()

    def _wait_for_rest(self) -> None:
        while True:
            if self._closed or not self._is_wanted():
                raise InterruptedError("the forecast is no longer wanted")
            if self._resting.wait(_LOOK_SECONDS):
                return


_HAS_WORK = select(
    or_(
        exists().where(col(Job.state).in_((JobState.QUEUED, JobState.RUNNING))),
        exists().where(col(ForecastRecord.job_id).is_not(None)),
    )
)


def _newest_queued(session: Session) -> float | None:
    """When the newest of the queued jobs was submitted, or became ready."""
    newest: float | None = session.scalar(select(func.max(Job.ready_at)).where(col(Job.state) == JobState.QUEUED))
    return newest
