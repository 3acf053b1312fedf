"""Runs the scheduler's duties: at once on a wake-up, else at intervals, as long as this scheduler is the leader."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack

from celery import Celery

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger.accounts import totals
from jobs.queue import Doorbell, WakeReason
from scheduler.control.dispatch.dispatcher import dispatch
from scheduler.control.duties import Duty, Lane
from scheduler.control.forecaster import Forecaster
from scheduler.control.leader import Leader
from scheduler.control.reaper import reap
from scheduler.control.service_pools import ServicePools

logger = logging.getLogger(__name__)

_DUTIES = "duties"  # name of the lane of all duties that neither free nor fill slots
_MERGE_SECONDS = 10.0  # between two looks whether the totals of jobs have many rows
_RETENTION_SECONDS = 3600.0
_FIRST_RETENTION_SECONDS = 60.0  # after becoming leader; jobs come first
_CHECKS_PER_LIFE = 4  # how often per life of the leader lock a standby checks it


class Service:
    """The scheduler. Any number of them may run: one is the leader, the others stand by."""

    def __init__(self, settings: Settings, database: Database, store: Store, app: Celery) -> None:
        """
        Args:
            settings: Intervals and limits.
            database: The database, already migrated.
            store: The store of artifacts and uploads.
            app: The Celery app whose broker rings the slots.
        """
        self._settings = settings
        self._db = database
        self._store = store
        self._app = app
        self._doorbell = Doorbell(settings)
        self._leader = Leader(database, leader_seconds=settings.leader_seconds)
        self._stopping = threading.Event()
        self._resting = threading.Event()  # set while no scheduling pass runs
        self._resting.set()
        self._thread: threading.Thread | None = None
        self._lanes: dict[str, Lane] = {}

    @property
    def leads(self) -> bool:
        """Whether this scheduler is the leader."""
        return self._leader.held

    def start(self) -> None:
        """Run in a thread of this process until `stop`."""
        self._thread = threading.Thread(target=self.run, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop cleanly: start nothing new and release the leader lock. Returns when done."""
        self._stopping.set()
        self._doorbell.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def run(self) -> None:
        """Lead whenever no other scheduler does, until `stop` is called from another thread or a signal handler."""
        try:
            while not self._stopping.is_set():
                pause_seconds = self._try_to_lead()
                if pause_seconds > 0:
                    self._stopping.wait(pause_seconds)
                    continue
                try:
                    self._lead()
                finally:
                    self._leader.resign()
        finally:
            logger.info("the scheduler has stopped")

    def _try_to_lead(self) -> float:
        """Returns 0 when this scheduler leads, else the seconds to wait before the next try."""
        try:
            left_seconds = self._leader.acquire()
        except ServiceUnavailable as error:
            logger.warning("cannot reach the database, so this scheduler cannot become the leader: %s", error)
            return self._settings.leader_seconds / _CHECKS_PER_LIFE
        except Exception:  # the service's outermost loop: a scheduler that ended would leave every job waiting
            logger.exception("cannot find out whether this scheduler is the leader")
            return self._settings.leader_seconds
        return min(left_seconds, self._settings.leader_seconds / _CHECKS_PER_LIFE)

    def _lead(self) -> None:
        with ExitStack() as running:
            pools = running.enter_context(
                ServicePools(
                    self._db,
                    self._store,
                    self._settings,
                    is_wanted=self._is_wanted,
                    on_planned=self._wake_lanes,
                    on_done=self._wake_duties,
                )
            )
            forecaster = running.enter_context(
                Forecaster(self._db, self._settings, self._settings.projects, self._is_wanted, resting=self._resting)
            )
            self._lanes = self._make_lanes(pools, forecaster)
            for lane in self._lanes.values():
                lane.start()
                running.callback(lane.stop)
            running.callback(pools.stop)  # the first to be called, so that nothing starts while the lanes stop
            while self._is_wanted():
                match self._doorbell.wait(self._settings.sweep_seconds):
                    case WakeReason.SLOTS:
                        self._wake_lanes()
                    case WakeReason.SUBMISSION:
                        self._wake_duties()

    def _wake_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.wake()

    def _wake_duties(self) -> None:
        """Wake the lane of the other duties. It suffices for what neither frees a slot nor needs one."""
        if _DUTIES in self._lanes:
            self._lanes[_DUTIES].wake()

    def _is_wanted(self) -> bool:
        return not self._stopping.is_set() and self._leader.held

    # -- the duties

    def _make_lanes(self, pools: ServicePools, forecaster: Forecaster) -> dict[str, Lane]:
        """The lanes, by name: what frees slots, what fills slots, and the rest. None of them waits for another."""
        sweep_seconds = self._settings.sweep_seconds
        first = time.monotonic() + _FIRST_RETENTION_SECONDS
        freeing = [Duty("reaping", self._reap, sweep_seconds, on_wake=False)]
        filling = [Duty("dispatching", self._dispatch, sweep_seconds, on_wake=True)]
        rest = [
            Duty("enqueueing", pools.enqueue, sweep_seconds, on_wake=True),
            Duty("cron", pools.enqueue_crons, sweep_seconds, on_wake=False),
            Duty("forecasts", forecaster.wake_if_due, sweep_seconds, on_wake=False),
            Duty("merging totals", lambda: totals.merge(self._db), _MERGE_SECONDS, on_wake=False),
            Duty("retention", pools.enqueue_retention, _RETENTION_SECONDS, on_wake=False, due_at=first),
            Duty("retention after a failure", pools.enqueue_retention_again, sweep_seconds, on_wake=False),
        ]
        return {
            name: Lane(name, duties, first_pause_seconds=sweep_seconds, is_wanted=self._is_wanted)
            for name, duties in (("reaper", freeing), ("dispatcher", filling), (_DUTIES, rest))
        }

    def _dispatch(self) -> None:
        self._resting.clear()
        try:
            dispatch(self._db, self._app, self._settings, self._settings.projects)
        finally:
            self._resting.set()

    def _reap(self) -> None:
        if reap(self._db, self._app, self._settings):
            self._wake_lanes()
