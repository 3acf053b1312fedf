"""The scheduler's pools of threads for work that may take long, and what is enqueued in each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import arrays, batch_ends, batches, crons
from jobs.ledger.records import webhooks
from jobs.retries import ENDLESS, RetryPolicy
from scheduler.control.cron import fire_cron, skip_cron
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.arrays import fill_array, plan_any
from scheduler.control.retention import retain
from scheduler.control.retry_pool import PoolGroup, RetryPool
from scheduler.control.webhook_sender import deliver
from scheduler.openai.lifecycle import abort_batch, finish_batch, read_batch, reject_batch

_PLANNERS = 3  # so that one huge input does not delay small jobs
_FINALIZERS = 2
_SENDERS = 8  # receivers that are contacted at once
_CUT_OFF_SECONDS = 1.0  # time for running deliveries at shutdown; interrupted ones are sent again
_MOST_PLANNINGS = 20  # tries over about a quarter of an hour before a job with an unreachable input fails
_OLD = "old data"  # what the pool of retention is offered
_LAST_TRY = 3  # tries of retention before it waits for its next turn
_ENQUEUED_AT_ONCE = 200  # jobs enqueued in a round, the most urgent first


class ServicePools(PoolGroup):
    """All pools of the service that leads; closed together at the end of a `with` block."""

    def __init__(
        self,
        db: Database,
        store: Store,
        settings: Settings,
        *,
        is_wanted: Callable[[], bool],
        on_planned: Callable[[], None],
        on_done: Callable[[], None],
    ) -> None:
        """
        Args:
            settings: The scheduler's settings: retries, graces and limits.
            is_wanted: Whether this scheduler still leads; long work asks it and ends early.
            on_planned: Called after a job was planned, which needs a slot.
            on_done: Called after other work that leaves something to enqueue.
        """
        super().__init__()
        self._db, self._settings, self._on_done = db, settings, on_done
        parts = (db, store, settings)
        grace_seconds = settings.grace_seconds
        plan = partial(plan_any, *parts, is_wanted=is_wanted)
        self._planning = self._pool("planning", plan, _PLANNERS, max_tries=_MOST_PLANNINGS, on_done=on_planned)
        # Never given up: all results are computed, and only the store, disk or database has to come back.
        self._finalizing = self._pool("finalizing", partial(finalize_job, *parts), _FINALIZERS, max_tries=ENDLESS)
        fill = partial(fill_array, *parts, is_wanted=is_wanted)
        self._making = self._pool("array", fill, 1, max_tries=ENDLESS)
        read = partial(read_batch, *parts, is_wanted=is_wanted)
        reject, abort = partial(reject_batch, db), partial(abort_batch, db)
        self._intake = self._pool("batch intake", read, _PLANNERS, max_tries=_MOST_PLANNINGS, on_give_up=reject)
        write = partial(finish_batch, *parts)
        self._outputs = self._pool("batch output", write, _FINALIZERS, max_tries=ENDLESS, on_give_up=abort)
        self._cleaning = self.add(
            RetryPool(
                "retention",
                lambda _: retain(*parts, is_wanted=is_wanted),
                num_threads=1,
                retry_policy=RetryPolicy(_LAST_TRY, settings.retry_seconds, settings.retry_max_seconds),
                on_failure=_only_logged,
                on_give_up=_only_logged,
                on_done=_nothing,
            ),
            grace_seconds,
        )
        # One receiver per thread, so that an unreachable one does not delay others.
        self._sending = self.add(
            RetryPool(
                "webhooks",
                partial(deliver, db, settings, is_wanted=is_wanted),
                num_threads=_SENDERS,
                retry_policy=RetryPolicy(ENDLESS, settings.webhook_retry_seconds, settings.retry_max_seconds),
                on_failure=_only_logged,
                on_give_up=_only_logged,
                on_done=_nothing,
            ),
            min(_CUT_OFF_SECONDS, grace_seconds),
        )
        # A pool of its own, because the checks of a submission may read files.
        self._firing = self.add(
            RetryPool(
                "cron",
                partial(fire_cron, *parts),
                num_threads=1,
                retry_policy=RetryPolicy(_MOST_PLANNINGS, settings.retry_seconds, settings.retry_max_seconds),
                on_failure=_only_logged,
                on_give_up=partial(skip_cron, db),
                on_done=on_done,
            ),
            grace_seconds,
        )

    def enqueue(self) -> None:
        """Enqueue what waits: jobs to plan or finalize, arrays that need children, batches, and due webhooks.

        Everything is read in one transaction, since this runs several times for each job.
        """
        with self._db.read() as session:
            now = session.time()
            to_plan, to_finalize = (
                session.scalars(_URGENT, {"state": state, "now": now, "most": _ENQUEUED_AT_ONCE + num_waiting}).all()
                for state, num_waiting in (
                    (JobState.VALIDATING, self._planning.num_waiting),
                    (JobState.FINALIZING, self._finalizing.num_waiting),
                )
            )
            arrays_to_fill = arrays.to_fill(session)
            new_batches, ended_batches = batches.to_validate(session), batch_ends.to_finish(session)
            due = webhooks.due(session)
        self._planning.offer(to_plan)
        self._finalizing.offer(to_finalize)
        self._making.offer(arrays_to_fill)
        self._intake.offer(new_batches)
        self._outputs.offer(ended_batches)
        self._sending.offer(due)

    def enqueue_crons(self) -> None:
        """Enqueue the cron entries whose time has come."""
        with self._db.read() as session:
            due = crons.due(session)
        self._firing.offer(due)

    def enqueue_retention(self) -> None:
        """Enqueue the deletion of all that is due."""
        self._cleaning.offer([_OLD])

    def enqueue_retention_again(self) -> None:
        """Enqueue the deletion if it has failed, since a pool tries again only what it is offered."""
        if self._cleaning.num_waiting:
            self.enqueue_retention()

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
        pool = RetryPool(
            name,
            work,
            num_threads=num_threads,
            retry_policy=RetryPolicy(max_tries, self._settings.retry_seconds, self._settings.retry_max_seconds),
            on_failure=partial(self._note_failure, name),
            on_give_up=on_give_up or self._fail,
            on_done=on_done or self._on_done,
        )
        return self.add(pool, self._settings.grace_seconds)

    def _note_failure(self, name: str, job_id: str, error: StokerError) -> None:
        with self._db.write() as session:
            session.record(job_id, "job.delayed", duty=name, code=error.code, reason=error.message)

    def _fail(self, job_id: str, error: StokerError) -> None:
        job_ledger.fail(self._db, job_id, error)


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
