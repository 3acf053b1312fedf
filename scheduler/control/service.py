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
from scheduler.control.retry_pool import Workbench
from scheduler.control.webhook_sender import deliver
from scheduler.openai.lifecycle import break_off, finish, give_up, take_in

logger = logging.getLogger(__name__)

_PLANNERS = 3  # one huge input must not keep small jobs waiting
_FINALIZERS = 2
_SENDERS = 8  # receivers that are waited for at once
_CUT_OFF_SECONDS = 1.0  # time for a delivery under way at the end; what is cut off is sent again
_MOST_PLANNINGS = 20  # tries, about a quarter of an hour, before a job whose input cannot be reached fails
_LAST_TRY = 3  # of retention, before it waits for its next turn
_LAID_AT_ONCE = 200  # jobs laid on the benches at a sweep, the most urgent first
_RETENTION_SECONDS = 3600.0
_FIRST_RETENTION_SECONDS = 60.0  # after taking the lead; work comes first
_LOOKS_PER_LIFE = 4  # of the leader lock; how often a standby looks whether the leader has resigned
_LONGEST_PAUSE_SECONDS = 30.0  # of a duty that keeps failing


@dataclass(slots=True)
class _Duty:
    """Something the leader does again and again."""

    name: str
    run: Callable[[], object]
    every_seconds: float
    on_wake: bool
    """Whether a wake-up calls for it at once."""
    due_at: float = 0.0
    """Monotonic seconds."""
    failures: int = 0
    """In a row."""


class Service:
    """The scheduler. Any number of them may run; one leads, the others wait to follow it."""

    def __init__(self, settings: Settings, database: Database, store: Store, app: Celery) -> None:
        """
        Args:
            settings: intervals and limits.
            database: migrated.
            store: of artifacts and uploads.
            app: the Celery app whose broker rings the slots.
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
        """Whether this scheduler is the leader now."""
        return self._leader.held

    def start(self) -> None:
        """Run in a thread of this process until `stop`."""
        self._thread = threading.Thread(target=self.run, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End in order: begin nothing more, leave the lock to another. Returns when that is done."""
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
            logger.warning("the database is away, so nobody can lead: %s", error)
            return self._settings.leader_seconds / _LOOKS_PER_LIFE
        except Exception:  # the service's outermost loop: a scheduler that ended would leave every job waiting
            logger.exception("this scheduler cannot find out whether it leads")
            return self._settings.leader_seconds
        return min(left_seconds, self._settings.leader_seconds / _LOOKS_PER_LIFE)

    def _lead(self) -> None:
        with ExitStack() as benches:
            duties = self._duties(benches)
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

    def _duties(self, benches: ExitStack) -> list[_Duty]:
        """The duties in the order in which they are done: what frees slots, what fills them, then the rest."""
        settings, db, app = self._settings, self._db, self._app
        planning, finalizing, cleaning = self._benches(benches)
        intake, outlet = self._batch_benches(benches)
        posting = self._webhook_bench(benches)
        sweep_seconds = settings.sweep_seconds
        first = time.monotonic() + _FIRST_RETENTION_SECONDS
        return [
            _Duty("reaping", lambda: reap(db, app, settings), sweep_seconds, on_wake=False),
            _Duty("dispatching", lambda: dispatch(db, app, settings), sweep_seconds, on_wake=True),
            _Duty("laying out", lambda: self._lay_out(planning, finalizing), sweep_seconds, on_wake=True),
            _Duty("batches", lambda: self._lay_out_batches(intake, outlet), sweep_seconds, on_wake=True),
            _Duty("webhooks", lambda: self._lay_out_webhooks(posting), sweep_seconds, on_wake=True),
            _Duty("retention", lambda: cleaning.lay(["old"]), _RETENTION_SECONDS, on_wake=False, due_at=first),
        ]  # fmt: skip

    def _benches(self, stack: ExitStack) -> tuple[Workbench, Workbench, Workbench]:
        """For planning, finalizing and retention, which may take long; closed with the stack."""
        settings = self._settings
        parts = (self._db, self._store, settings)
        plan = partial(plan_job, *parts, is_wanted=self._is_wanted)
        clean = partial(retain, *parts, is_wanted=self._is_wanted)
        planning = self._bench("planning", plan, _PLANNERS, max_tries=_MOST_PLANNINGS)
        # Never given up: everything is computed, and only a store, disk or database has to come back.
        finalizing = self._bench("finalizing", partial(finalize_job, *parts), _FINALIZERS, max_tries=ENDLESS)
        cleaning = Workbench(
            "retention",
            lambda _: clean(),
            num_threads=1,
            patience=RetryPolicy(_LAST_TRY, settings.retry_seconds, settings.retry_max_seconds),
            on_trouble=_only_logged,
            give_up=_only_logged,
            on_done=_nothing,
        )
        for bench in (planning, finalizing, cleaning):
            stack.callback(bench.close, settings.grace_seconds)
        return planning, finalizing, cleaning

    def _batch_benches(self, stack: ExitStack) -> tuple[Workbench, Workbench]:
        """For reading the files of batches and for writing their answers; closed with the stack."""
        parts = (self._db, self._store, self._settings)
        read = partial(take_in, *parts, is_wanted=self._is_wanted)
        refuse = partial(give_up, self._db)
        intake = self._bench("batch intake", read, _PLANNERS, max_tries=_MOST_PLANNINGS, give_up=refuse)
        write, lament = partial(finish, *parts), partial(break_off, self._db)
        outlet = self._bench("batch answers", write, _FINALIZERS, max_tries=ENDLESS, give_up=lament)
        for bench in (intake, outlet):
            stack.callback(bench.close, self._settings.grace_seconds)
        return intake, outlet

    def _webhook_bench(self, stack: ExitStack) -> Workbench:
        """For sending deliveries, one receiver to a thread: one that is away rests, and holds up no other."""
        settings = self._settings
        posting = Workbench(
            "webhooks",
            partial(deliver, self._db, settings, is_wanted=self._is_wanted),
            num_threads=_SENDERS,
            patience=RetryPolicy(ENDLESS, settings.webhook_retry_seconds, settings.retry_max_seconds),
            on_trouble=_only_logged,
            give_up=_only_logged,
            on_done=_nothing,
        )
        stack.callback(posting.close, min(_CUT_OFF_SECONDS, settings.grace_seconds))
        return posting

    def _bench(
        self,
        name: str,
        work: Callable[[str], None],
        num_threads: int,
        *,
        max_tries: int,
        give_up: Callable[[str, StokerError], None] | None = None,
    ) -> Workbench:
        return Workbench(
            name,
            work,
            num_threads=num_threads,
            patience=RetryPolicy(max_tries, self._settings.retry_seconds, self._settings.retry_max_seconds),
            on_trouble=partial(self._note_trouble, name),
            give_up=give_up or self._fail,
            on_done=self._doorbell.wake,
        )

    def _note_trouble(self, name: str, job_id: str, error: StokerError) -> None:
        with self._db.write() as session:
            session.record(job_id, "job.delayed", duty=name, code=error.code, reason=error.message)

    def _fail(self, job_id: str, error: StokerError) -> None:
        job_ledger.fail(self._db, job_id, error)

    def _lay_out(self, planning: Workbench, finalizing: Workbench) -> None:
        """Lay the jobs that are to be planned or finalized on their benches, the most urgent first."""
        benches = {JobState.VALIDATING: planning, JobState.FINALIZING: finalizing}
        training = aliased(Job)
        waits = exists().where(col(training.id) == col(Job.waits_for), col(training.state).in_(LIVE_JOB_STATES))
        urgent = (
            select(col(Job.id), col(Job.state))
            .where(col(Job.state).in_(benches), ~waits)
            .order_by(col(Job.priority), col(Job.created_at), col(Job.id))
            .limit(_LAID_AT_ONCE + sum(bench.num_resting for bench in benches.values()))
        )
        with self._db.read() as session:
            rows = session.execute(urgent).all()
        for state, bench in benches.items():
            bench.lay(row.id for row in rows if row.state == state)

    def _lay_out_batches(self, intake: Workbench, outlet: Workbench) -> None:
        """Lay the batches that are to be read or answered on their benches, the oldest first."""
        with self._db.read() as session:
            new, ended = batches.to_take_in(session), batch_ends.to_finish(session)
        intake.lay(new)
        outlet.lay(ended)

    def _lay_out_webhooks(self, posting: Workbench) -> None:
        """Lay the webhooks to which something is due on their bench, the one that has waited longest first."""
        with self._db.read() as session:
            due = webhooks.due(session)
        posting.lay(due)


def _only_logged(_name: str, _error: StokerError) -> None:
    """The bench has logged it; the next turn tries again."""


def _nothing() -> None:
    """Nobody waits for this bench's end of work."""
