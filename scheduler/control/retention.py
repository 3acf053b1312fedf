"""Deletes data that is no longer needed: temporary files of dead writers, orphaned parts, expired uploads, old jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import delete, exists, or_, select, tuple_
from sqlalchemy.orm import aliased
from sqlmodel import col

from jobs.config.times import DAY_SECONDS, RetentionTimes
from jobs.data.store import Store
from jobs.data.store_keys import job_prefix
from jobs.db.database import Database
from jobs.db.states import LIVE_BATCH_STATES, LIVE_JOB_STATES, DeliveryState, JobState
from jobs.db.tables import (
    Artifact,
    Attempt,
    Batch,
    Checkpoint,
    Chunk,
    Dependency,
    Event,
    Job,
    Lease,
    LeaseCounts,
    LogLine,
    Metric,
    Notice,
    ResultRecord,
    Rung,
    StoredFile,
    WebhookDelivery,
)
from jobs.errors import ServiceUnavailable
from jobs.ledger.accounts.uploads import withdraw_unused
from jobs.ledger.dependencies import models_in_use
from jobs.specs.array_spec import ARRAY

logger = logging.getLogger(__name__)

_STALE_SECONDS = DAY_SECONDS
"""Age at which a temporary file's writer must be dead, and how long after its end a job may have orphaned parts."""
_ENDED = tuple(state for state in JobState if state not in LIVE_JOB_STATES)
_BATCH_ROWS = 5000  # rows deleted in one transaction, so that others do not wait long for the write lock
_BATCH_JOBS = 200  # jobs whose rows are deleted together
_ROWS_OF_A_JOB: tuple[tuple[Any, Any], ...] = (
    (ResultRecord, ResultRecord.row_index),
    (Chunk, Chunk.start_row),
    (Dependency, Dependency.parent_id),
    (Event, Event.id),
    (LogLine, LogLine.id),
    (Notice, Notice.code),
    (Lease, Lease.id),
    (Artifact, Artifact.name),
    (Metric, Metric.step),
    (Rung, Rung.step),
    (Checkpoint, Checkpoint.step),
    (Attempt, Attempt.number),
)
"""Tables whose rows belong to a job, each with the column that identifies a row within its job."""


def retain(db: Database, store: Store, times: RetentionTimes, *, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Delete everything that is due now.

    If this is killed, the next run finds all that is left, since objects are deleted before the rows that name them.
    After a step that cannot go on, the next ones do their work: what needs no store is deleted without it.
    The parts that chunks name stay as long as their job, because results are read from them, starting at any row.

    Args:
        is_wanted: Called after each deletion; once it returns False, the rest is left for the next run.

    Raises:
        ServiceUnavailable: The store or the database could not be reached in at least one step.
    """
    failure: ServiceUnavailable | None = None
    for step in (
        _delete_stale_temporaries,
        _delete_orphaned_parts,
        _delete_expired_uploads,
        _delete_old_jobs,
        _delete_old_batches,
        _delete_old_deliveries,
    ):
        try:
            for deleted in step(db, store, times):
                logger.info("deleted %s", deleted)
                if not is_wanted():
                    return
        except ServiceUnavailable as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _delete_stale_temporaries(_db: Database, store: Store, _times: RetentionTimes) -> Iterator[str]:
    for name in store.stale_temporaries(_STALE_SECONDS):
        store.delete(name)
        yield f"{name}, which a dead writer left"


def _delete_orphaned_parts(db: Database, store: Store, _times: RetentionTimes) -> Iterator[str]:
    """Delete parts of ended jobs that no chunk names, which a lease wrote and lost before its commit."""
    lately = (col(Job.state).in_(_ENDED), col(Job.ended_at) > db.now() - _STALE_SECONDS)
    with db.read() as session:
        ended = [
            row.id for row in session.execute(select(col(Job.id), col(Job.spec)).where(*lately)) if _has_parts(row)
        ]
    for job_id in ended:
        with db.read() as session:
            named = set(session.scalars(select(col(Chunk.part)).where(col(Chunk.job_id) == job_id)))
        for key in store.list(f"{job_prefix(job_id)}parts/"):
            if key not in named:
                store.delete(key)
                yield f"{key}, which belongs to no chunk"


def _has_parts(row: Any) -> bool:
    return bool(row.spec.get("output", {}).get("to", "database") != "database")


def _delete_expired_uploads(db: Database, store: Store, times: RetentionTimes) -> Iterator[str]:
    oldest = db.now() - times.upload_days * DAY_SECONDS
    expired = or_(col(StoredFile.expires_at) <= db.now(), col(StoredFile.created_at) <= oldest)
    for upload in withdraw_unused(db, expired):  # before the first deletion, since all of them may take minutes
        store.delete(upload.key)
        with db.write() as session:
            session.execute(delete(StoredFile).where(col(StoredFile.id) == upload.id))
        yield f"upload {upload.id}, which has expired"


def _delete_old_jobs(db: Database, store: Store, times: RetentionTimes) -> Iterator[str]:
    if times.job_days == 0:
        return
    answered_yet = exists().where(col(Batch.id) == col(Job.batch_id), col(Batch.state).in_(LIVE_BATCH_STATES))
    # A child is kept as long as its array, whose retry must know which children completed.
    array = aliased(Job)
    has_array = exists().where(col(array.id) == col(Job.parent_id))
    # An array is kept as long as the one that retries it, whose winner may be among these children.
    has_retry = exists().where(col(array.retry_of) == col(Job.id), col(Job.kind) == ARRAY)
    old = (col(Job.ended_at) < db.now() - times.job_days * DAY_SECONDS, ~answered_yet, ~has_array, ~has_retry)
    oldest_first = select(col(Job.id)).where(*old).order_by(col(Job.ended_at), col(Job.id))
    num_deleted = _BATCH_JOBS
    while num_deleted == _BATCH_JOBS:
        with db.read() as session:
            in_use = models_in_use(session)
            found = session.scalars(oldest_first.limit(_BATCH_JOBS + len(in_use))).all()
        job_ids = [job_id for job_id in found if job_id not in in_use][:_BATCH_JOBS]
        for job_id in job_ids:
            for key in list(store.list(job_prefix(job_id))):
                store.delete(key)
                yield f"{key} of job {job_id}"
        for table, key_column in _ROWS_OF_A_JOB:
            while _delete_some(db, table, key_column, job_ids) >= _BATCH_ROWS:
                yield f"{_BATCH_ROWS} rows of {table.__tablename__}"
        with db.write() as session:
            num_deleted = session.changed(delete(Job).where(col(Job.id).in_(job_ids), col(Job.state).in_(_ENDED)))
            # Not before the jobs: the trigger that takes their rows away from the totals needs these sums.
            session.execute(delete(LeaseCounts).where(col(LeaseCounts.job_id).in_(job_ids)))
        if num_deleted:
            yield f"{num_deleted} jobs, which ended more than {times.job_days:g} days ago"


def _delete_old_batches(db: Database, _store: Store, times: RetentionTimes) -> Iterator[str]:
    """Delete old batches. Their jobs and files are deleted at their own ages."""
    if times.job_days == 0:
        return
    ended = col(Batch.state).not_in(LIVE_BATCH_STATES)
    old = col(Batch.created_at) < db.now() - times.job_days * DAY_SECONDS
    with db.read() as session:
        batch_ids = session.scalars(select(col(Batch.id)).where(ended, old)).all()
    for first in range(0, len(batch_ids), _BATCH_JOBS):
        some = batch_ids[first : first + _BATCH_JOBS]
        while _delete_some(db, Event, Event.id, some) >= _BATCH_ROWS:
            yield f"{_BATCH_ROWS} rows of events"
        with db.write() as session:
            session.execute(delete(Batch).where(col(Batch.id).in_(some), ended))
        yield f"{len(some)} batches, which were made more than {times.job_days:g} days ago"


def _delete_old_deliveries(db: Database, _store: Store, times: RetentionTimes) -> Iterator[str]:
    old = (
        col(WebhookDelivery.state) != DeliveryState.PENDING,
        col(WebhookDelivery.ended_at) < db.now() - times.webhook_days * DAY_SECONDS,
    )
    some = select(col(WebhookDelivery.id)).where(*old).limit(_BATCH_ROWS)
    num_deleted = _BATCH_ROWS
    while num_deleted == _BATCH_ROWS:
        with db.write() as session:
            num_deleted = session.changed(delete(WebhookDelivery).where(col(WebhookDelivery.id).in_(some)))
        if num_deleted:
            yield f"{num_deleted} deliveries of webhooks, which ended more than {times.webhook_days:g} days ago"


def _delete_some(db: Database, table: Any, key_column: Any, job_ids: Sequence[str]) -> int:
    """Delete at most `_BATCH_ROWS` rows of these jobs or batches."""
    key = tuple_(table.job_id, key_column)
    some = select(table.job_id, key_column).where(table.job_id.in_(job_ids)).limit(_BATCH_ROWS)
    with db.write() as session:
        return session.changed(delete(table).where(table.job_id.in_(job_ids), key.in_(some)))
