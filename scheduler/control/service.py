"""Runs the scheduler's duties: at once on a wake-up, else at intervals, as long as this scheduler is the leader."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from celery import Celery
from sqlalchemy import exists, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Job
from jobs.errors import ServiceUnavailable, StokerError
from jobs.ledger import batch_ends, batches, webhooks
from jobs.ledger import jobs as job_ledger
from jobs.queue import Doorbell
from jobs.retries import ENDLESS, Backoff, RetryPolicy
from scheduler.control.dispatcher import dispatch
from scheduler.control.finalizer import finalize_job
from scheduler.control.leader import Leader
from scheduler.control.planner import plan_job
from scheduler.control.reaper import reap
from scheduler.control.retention import retain
from scheduler.control.retry_pool import RetryPool
from scheduler.control.webhook_sender import deliver
from scheduler.openai.lifecycle import abort_batch, finish_batch, read_batch, reject_batch

logger = logging.getLogger(__name__)

_PLANNERS = 3  # so that one huge input does not delay small jobs
_FINALIZERS = 2
_SENDERS = 8  # receivers that are contacted at once
_CUT_OFF_SECONDS = 1.0  # time for running deliveries at shutdown; interrupted ones are sent again
_MOST_PLANNINGS = 20  # tries over about a quarter of an hour before a job with an unreachable input fails
_LAST_TRY = 3  # tries of retention before it waits for its next turn
_ENQUEUED_AT_ONCE = 200  # jobs enqueued at a sweep, the most urgent first
_RETENTION_SECONDS = 3600.0
_FIRST_RETENTION_SECONDS = 60.0  # after becoming leader; jobs come first
_LOOKS_PER_LIFE = 4  # how often per life of the leader lock a standby checks it
_LONGEST_PAUSE_SECONDS = 30.0  # longest pause of a duty that keeps failing


@dataclass(slots=True)
class _Duty:
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
        self._thread: threading.Thread | None = None

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
            logger.warning("the database cannot be reached, so no scheduler can lead: %s", error)
            return self._settings.leader_seconds / _LOOKS_PER_LIFE
        except Exception:  # the service's outermost loop: a scheduler that ended would leave every job waiting
            logger.exception("this scheduler cannot find out whether it leads")
            return self._settings.leader_seconds
        return min(left_seconds, self._settings.leader_seconds / _LOOKS_PER_LIFE)

    def _lead(self) -> None:
        with ExitStack() as pools:
            duties = self._duties(pools)
            woken = True
            while self._is_wanted():
                self._do(duties, woken=woken)
                now = time.monotonic()
                next_due = min(duty.due_at for duty in duties)
                woken = self._doorbell.wait(max(0.0, next_due - now))

    def _is_wanted(self) -> bool:
        return not self._stopping.is_set() and self._leader.held

    def _do(self, duties: list[_Duty], *, woken: bool) -> None:
        for duty in duties:
            is_due = time.monotonic() >= duty.due_at
            if not is_due and not (woken and duty.on_wake and not duty.failures):
                continue
            if not self._is_wanted():
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
                backoff = Backoff(self._settings.sweep_seconds, max(pause_seconds, _LONGEST_PAUSE_SECONDS))
                pause_seconds = backoff.delay_seconds(duty.failures)
            duty.due_at = time.monotonic() + pause_seconds

    # -- the duties

    def _duties(self, pools: ExitStack) -> list[_Duty]:
        """The duties in the order in which they run: those that free slots, those that fill slots, then the rest."""
        settings, db, app = self._settings, self._db, self._app
        planning, finalizing, cleaning = self._job_pools(pools)
        intake, answers = self._batch_pools(pools)
        sending = self._webhook_pool(pools)
        sweep_seconds = settings.sweep_seconds
        first = time.monotonic() + _FIRST_RETENTION_SECONDS
        return [
            _Duty("reaping", lambda: reap(db, app, settings), sweep_seconds, on_wake=False),
            _Duty("dispatching", lambda: dispatch(db, app, settings), sweep_seconds, on_wake=True),
            _Duty("enqueueing jobs", lambda: self._enqueue_jobs(planning, finalizing), sweep_seconds, on_wake=True),
            _Duty("batches", lambda: self._enqueue_batches(intake, answers), sweep_seconds, on_wake=True),
            _Duty("webhooks", lambda: self._enqueue_webhooks(sending), sweep_seconds, on_wake=True),
            _Duty("retention", lambda: cleaning.offer(["old"]), _RETENTION_SECONDS, on_wake=False, due_at=first),
        ]  # fmt: skip

    def _job_pools(self, stack: ExitStack) -> tuple[RetryPool, RetryPool, RetryPool]:
        """Pools for planning, finalizing and retention, which may take long; closed with the stack."""
        settings = self._settings
        parts = (self._db, self._store, settings)
        plan = partial(plan_job, *parts, is_wanted=self._is_wanted)
        clean = partial(retain, *parts, is_wanted=self._is_wanted)
        planning = self._pool("planning", plan, _PLANNERS, max_tries=_MOST_PLANNINGS)
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
            stack.callback(pool.close, settings.grace_seconds)
        return planning, finalizing, cleaning

    def _batch_pools(self, stack: ExitStack) -> tuple[RetryPool, RetryPool]:
        """Pools for reading batch files and for writing output files; closed with the stack."""
        parts = (self._db, self._store, self._settings)
        read = partial(read_batch, *parts, is_wanted=self._is_wanted)
        reject, abort = partial(reject_batch, self._db), partial(abort_batch, self._db)
        intake = self._pool("batch intake", read, _PLANNERS, max_tries=_MOST_PLANNINGS, on_give_up=reject)
        write = partial(finish_batch, *parts)
        answers = self._pool("batch answers", write, _FINALIZERS, max_tries=ENDLESS, on_give_up=abort)
        for pool in (intake, answers):
            stack.callback(pool.close, self._settings.grace_seconds)
        return intake, answers

    def _webhook_pool(self, stack: ExitStack) -> RetryPool:
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
        stack.callback(sending.close, min(_CUT_OFF_SECONDS, settings.grace_seconds))
        return sending

    def _pool(
        self,
        name: str,
        work: Callable[[str], None],
        num_threads: int,
        *,
        max_tries: int,
        on_give_up: Callable[[str, StokerError], None] | None = None,
    ) -> RetryPool:
        return RetryPool(
            name,
            work,
            num_threads=num_threads,
            retry_policy=RetryPolicy(max_tries, self._settings.retry_seconds, self._settings.retry_max_seconds),
            on_failure=partial(self._note_failure, name),
            on_give_up=on_give_up or self._fail,
            on_done=self._doorbell.wake,
        )

    def _note_failure(self, name: str, job_id: str, error: StokerError) -> None:
        with self._db.write() as session:
            session.record(job_id, "job.delayed", duty=name, code=error.code, reason=error.message)

    def _fail(self, job_id: str, error: StokerError) -> None:
        job_ledger.fail(self._db, job_id, error)

    def _enqueue_jobs(self, planning: RetryPool, finalizing: RetryPool) -> None:
        """Enqueue the jobs to plan or finalize, the most urgent first."""
        pools = {JobState.VALIDATING: planning, JobState.FINALIZING: finalizing}
        training = aliased(Job)
        waits = exists().where(col(training.id) == col(Job.waits_for), col(training.state).in_(LIVE_JOB_STATES))
        urgent = (
            select(col(Job.id), col(Job.state))
            .where(col(Job.state).in_(pools), ~waits)
            .order_by(col(Job.priority), col(Job.created_at), col(Job.id))
            .limit(_ENQUEUED_AT_ONCE + sum(pool.num_waiting for pool in pools.values()))
        )
        with self._db.read() as session:
            rows = session.execute(urgent).all()
        for state, pool in pools.items():
            pool.offer(row.id for row in rows if row.state == state)

    def _enqueue_batches(self, intake: RetryPool, answers: RetryPool) -> None:
        """Enqueue the batches to read or answer, the oldest first."""
        with self._db.read() as session:
            new, ended = batches.to_take_in(session), batch_ends.to_finish(session)
        intake.offer(new)
        answers.offer(ended)

    def _enqueue_webhooks(self, sending: RetryPool) -> None:
        """Enqueue the webhooks with due deliveries, the one that has waited longest first."""
        with self._db.read() as session:
            due = webhooks.due(session)
        sending.offer(due)


def _only_logged(_name: str, _error: StokerError) -> None:
    """The pool has logged the error; the next turn tries again."""


def _nothing() -> None:
    """No callback needed."""
