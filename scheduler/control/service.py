"""Runs the scheduler's duties: at once on a wake-up, else at intervals, as long as this scheduler is the leader."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from celery import Celery
from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import ServiceUnavailable, StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts import totals
from jobs.ledger.groups import arrays, batch_ends, batches, crons
from jobs.ledger.records import webhooks
from jobs.queue import Doorbell, WakeReason
from jobs.retries import ENDLESS, RetryPolicy
from scheduler.control.cron import fire_cron, skip_cron
from scheduler.control.dispatch.dispatcher import dispatch
from scheduler.control.duties import Duty, Lane
from scheduler.control.finalizer import finalize_job
from scheduler.control.forecaster import Forecaster
from scheduler.control.leader import Leader
from scheduler.control.planning.arrays import fill_array, plan_any
from scheduler.control.reaper import reap
from scheduler.control.retention import retain
from scheduler.control.retry_pool import PoolGroup, RetryPool
from scheduler.control.webhook_sender import deliver
from scheduler.openai.lifecycle import abort_batch, finish_batch, read_batch, reject_batch

logger = logging.getLogger(__name__)

_DUTIES = "duties"  # name of the lane of all duties that neither free nor fill slots
_PLANNERS = 3  # so that one huge input does not delay small jobs
_FINALIZERS = 2
_SENDERS = 8  # receivers that are contacted at once
_CUT_OFF_SECONDS = 1.0  # time for running deliveries at shutdown; interrupted ones are sent again
_MOST_PLANNINGS = 20  # tries over about a quarter of an hour before a job with an unreachable input fails
_OLD = "old data"  # what the pool of retention is offered
_LAST_TRY = 3  # tries of retention before it waits for its next turn
_ENQUEUED_AT_ONCE = 200  # jobs enqueued in a round, the most urgent first
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
            pools = running.enter_context(PoolGroup())
            self._lanes = self._make_lanes(running, pools)
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

    def _make_lanes(self, running: ExitStack, pools: PoolGroup) -> dict[str, Lane]:
        """The lanes, by name: what frees slots, what fills slots, and the rest. None of them waits for another."""
        settings, db = self._settings, self._db
        planning, finalizing, cleaning = self._job_pools(pools)
        intake, outputs = self._batch_pools(pools)
        sending = self._webhook_pool(pools)
        firing = self._cron_pool(pools)
        forecaster = running.enter_context(
            Forecaster(db, settings, settings.projects, self._is_wanted, resting=self._resting)
        )
        fill = partial(fill_array, db, self._store, settings, is_wanted=self._is_wanted)
        making = pools.add(self._pool("array", fill, 1, max_tries=ENDLESS), settings.grace_seconds)
        enqueue = partial(
            self._enqueue,
            planning=planning, finalizing=finalizing, making=making, intake=intake, outputs=outputs, sending=sending,
        )  # fmt: skip

        def clean_again() -> None:
            if cleaning.num_waiting:  # a pool tries only what it is offered
                cleaning.offer([_OLD])

        sweep_seconds = settings.sweep_seconds
        first = time.monotonic() + _FIRST_RETENTION_SECONDS
        freeing = [Duty("reaping", self._reap, sweep_seconds, on_wake=False)]
        filling = [Duty("dispatching", self._dispatch, sweep_seconds, on_wake=True)]
        rest = [
            Duty("enqueueing", enqueue, sweep_seconds, on_wake=True),
            Duty("cron", lambda: self._enqueue_crons(firing), sweep_seconds, on_wake=False),
            Duty("forecasts", forecaster.wake_if_due, sweep_seconds, on_wake=False),
            Duty("merging totals", lambda: totals.merge(db), _MERGE_SECONDS, on_wake=False),
            Duty("retention", lambda: cleaning.offer([_OLD]), _RETENTION_SECONDS, on_wake=False, due_at=first),
            Duty("retention after a failure", clean_again, sweep_seconds, on_wake=False),
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

    def _job_pools(self, pools: PoolGroup) -> tuple[RetryPool, RetryPool, RetryPool]:
        """Pools for planning, finalizing and retention, which may take long."""
        settings = self._settings
        parts = (self._db, self._store, settings)
        plan = partial(plan_any, *parts, is_wanted=self._is_wanted)
        clean = partial(retain, *parts, is_wanted=self._is_wanted)
        planning = self._pool(
            "planning", plan, _PLANNERS, max_tries=_MOST_PLANNINGS, on_done=self._wake_lanes
        )  # a planned job needs a slot
        # Never given up: all results are computed, and only the store, disk or database has to come back.
        finalizing = self._pool("finalizing", partial(finalize_job, *parts), _FINALIZERS, max_tries=ENDLESS)
        cleaning = RetryPool(
            "retention",
            lambda _: clean(),
            num_threads=1,
            retry_policy=RetryPolicy(_LAST_TRY, settings.retry_seconds, settings.retry_max_seconds),
            on_failure=_only_logged,
            on_give_up=_only_logged,
            on_done=_nothing,
        )
        for pool in (planning, finalizing, cleaning):
            pools.add(pool, settings.grace_seconds)
        return planning, finalizing, cleaning

    def _batch_pools(self, pools: PoolGroup) -> tuple[RetryPool, RetryPool]:
        """Pools for reading batch files and for writing output files."""
        parts = (self._db, self._store, self._settings)
        read = partial(read_batch, *parts, is_wanted=self._is_wanted)
        reject, abort = partial(reject_batch, self._db), partial(abort_batch, self._db)
        intake = self._pool("batch intake", read, _PLANNERS, max_tries=_MOST_PLANNINGS, on_give_up=reject)
        write = partial(finish_batch, *parts)
        outputs = self._pool("batch output", write, _FINALIZERS, max_tries=ENDLESS, on_give_up=abort)
        for pool in (intake, outputs):
            pools.add(pool, self._settings.grace_seconds)
        return intake, outputs

    def _webhook_pool(self, pools: PoolGroup) -> RetryPool:
        """Pool for sending webhooks, one receiver per thread, so that an unreachable one does not delay others."""
        settings = self._settings
        sending = RetryPool(
            "webhooks",
            partial(deliver, self._db, settings, is_wanted=self._is_wanted),
            num_threads=_SENDERS,
            retry_policy=RetryPolicy(ENDLESS, settings.webhook_retry_seconds, settings.retry_max_seconds),
            on_failure=_only_logged,
            on_give_up=_only_logged,
            on_done=_nothing,
        )
        return pools.add(sending, min(_CUT_OFF_SECONDS, settings.grace_seconds))

    def _cron_pool(self, pools: PoolGroup) -> RetryPool:
        """Pool for submitting the jobs of cron entries, whose checks may read files."""
        settings = self._settings
        firing = RetryPool(
            "cron",
            partial(fire_cron, self._db, self._store, settings),
            num_threads=1,
            retry_policy=RetryPolicy(_MOST_PLANNINGS, settings.retry_seconds, settings.retry_max_seconds),
            on_failure=_only_logged,
            on_give_up=partial(skip_cron, self._db),
            on_done=self._wake_duties,
        )
        return pools.add(firing, settings.grace_seconds)

    def _pool(
        self,
        name: str,
        work: Callable[[str], None],
        num_threads: int,
        *,
        max_tries: int,
        on_give_up: Callable[[str, StokerError], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> RetryPool:
        return RetryPool(
            name,
            work,
            num_threads=num_threads,
            retry_policy=RetryPolicy(max_tries, self._settings.retry_seconds, self._settings.retry_max_seconds),
            on_failure=partial(self._note_failure, name),
            on_give_up=on_give_up or self._fail,
            on_done=on_done or self._wake_duties,
        )

    def _note_failure(self, name: str, job_id: str, error: StokerError) -> None:
        with self._db.write() as session:
            session.record(job_id, "job.delayed", duty=name, code=error.code, reason=error.message)

    def _fail(self, job_id: str, error: StokerError) -> None:
        job_ledger.fail(self._db, job_id, error)

    def _enqueue(
        self,
        *,
        planning: RetryPool,
        finalizing: RetryPool,
        making: RetryPool,
        intake: RetryPool,
        outputs: RetryPool,
        sending: RetryPool,
    ) -> None:
        """Enqueue what waits: jobs to plan or finalize, arrays that need children, batches, and due webhooks.

        Everything is read in one transaction, since this runs several times for each job.
        """
        with self._db.read() as session:
            now = session.time()
            to_plan, to_finalize = (
                session.scalars(_URGENT, {"state": state, "now": now, "most": _ENQUEUED_AT_ONCE + num_waiting}).all()
                for state, num_waiting in (
                    (JobState.VALIDATING, planning.num_waiting),
                    (JobState.FINALIZING, finalizing.num_waiting),
                )
            )
            arrays_to_fill = arrays.to_fill(session)
            new_batches, ended_batches = batches.to_validate(session), batch_ends.to_finish(session)
            due = webhooks.due(session)
        planning.offer(to_plan)
        finalizing.offer(to_finalize)
        making.offer(arrays_to_fill)
        intake.offer(new_batches)
        outputs.offer(ended_batches)
        sending.offer(due)

    def _enqueue_crons(self, firing: RetryPool) -> None:
        """Enqueue the cron entries whose time has come."""
        with self._db.read() as session:
            due = crons.due(session)
        firing.offer(due)


def _build_urgent() -> Select[str]:
    return (
        select(col(Job.id))
        .where(col(Job.state) == bindparam("state"), col(Job.ready_at) <= bindparam("now"))
        .order_by(col(Job.priority), col(Job.ready_at), col(Job.id))
        .limit(bindparam("most"))
    )


_URGENT = _build_urgent()
"""The jobs to plan or finalize, by their state. Built once, since the scheduler asks at every wake-up."""


def _only_logged(_name: str, _error: StokerError) -> None:
    """The pool has logged the error; the next turn tries again."""


def _nothing() -> None:
    """No callback needed."""
