"""Handles the work of ended leases: ends attempts, returns chunks, counts crashes, and isolates poison rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import orjson
from sqlalchemy import exists, select, update
from sqlmodel import Session, col

from jobs.config.times import RetryTimes
from jobs.data.rows import RowError, RowErrorCode
from jobs.db.moves import move, moving
from jobs.db.states import LIVE_JOB_STATES, LIVE_LEASE_STATES, AttemptEnd, ChunkState, JobState
from jobs.db.tables import IS_LEASED, Attempt, Chunk, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import DeviceOutOfMemory, ServiceUnavailable, StokerError, StoreUnwritable
from jobs.ledger import job_ends
from jobs.ledger.families import HAS_LIVE_CHILD
from jobs.retries import ENDLESS, GiveUp, RetryAt, decide
from jobs.specs.inference import TRAINING


def end_attempt(tx: Transaction, lease: Lease, end: AttemptEnd, reason: str) -> None:
    """Record why a training's attempt ended. Does nothing for a lease of another kind of job, which has no attempts."""
    ended = (
        update(Attempt)
        .where(
            col(Attempt.job_id) == lease.job_id, col(Attempt.number) == lease.attempt, col(Attempt.ended_at).is_(None)
        )
        .values(ended_at=tx.now(), end=end.value, reason=reason.replace("\0", "\ufffd"))
        .returning(col(Attempt.last_step))
    )
    row = tx.execute(ended).one_or_none()
    if row is not None:
        tx.record(
            lease.job_id, "attempt.ended", lease=lease.id, attempt=lease.attempt, end=end, reason=reason,
            last_step=row.last_step,
        )  # fmt: skip


def return_chunks(session: Session, lease_id: str, start_rows: Sequence[int] | None = None) -> None:
    """Make a lease's chunks pending again, or those with these first rows. The attempt does not count."""
    held = moving(Chunk, ChunkState.LEASED, ChunkState.PENDING).where(col(Chunk.lease_id) == lease_id, IS_LEASED)
    if start_rows is not None:
        held = held.where(col(Chunk.start_row).in_(start_rows))
    session.execute(held.values(lease_id=None))


def return_lost_chunks(
    tx: Transaction,
    lease: Lease,
    retries: RetryTimes,
    *,
    computing: int | None = None,
    error: StokerError | None = None,
) -> None:
    """Make a lost lease's chunks pending, with the next attempt number; count a crash against the computed chunk."""
    held = select(Chunk).where(col(Chunk.lease_id) == lease.id, IS_LEASED).with_for_update()
    for chunk in tx.scalars(held).all():
        _put_back(chunk)
        if computing is not None and error is not None and chunk.start_row == computing:
            _blame(tx, chunk, error, retries)
    tx.flush()


def _put_back(chunk: Chunk) -> None:
    """Make a leased chunk pending, with the next attempt number."""
    move(chunk, ChunkState.PENDING)
    chunk.lease_id, chunk.attempt = None, chunk.attempt + 1


def _blame(tx: Transaction, chunk: Chunk, error: StokerError, retries: RetryTimes) -> None:
    """Count a crash against a chunk. At the limit, split it in two; a single row becomes a row error instead.

    Each half starts one crash below the limit, so a poison row among n rows is alone after about log2(n) more crashes.
    """
    chunk.crashes += 1
    if chunk.crashes < retries.chunk_crashes:
        chunk.not_before = tx.time() + retries.retry_seconds
        return
    if chunk.stop_row - chunk.start_row == 1:
        row_error = RowError(
            RowErrorCode.POISON_ROW, f"computing this row killed the runner {chunk.crashes} times: {error.message}"
        )
        give_up(tx, chunk, row_error)
        return
    middle = (chunk.start_row + chunk.stop_row) // 2
    chunk.crashes -= 1
    tx.add(
        Chunk(
            job_id=chunk.job_id,
            start_row=middle,
            stop_row=chunk.stop_row,
            locator=chunk.locator,
            attempt=chunk.attempt,
            crashes=chunk.crashes,
        )
    )
    tx.record(
        chunk.job_id, "chunk.split", start_row=chunk.start_row, stop_row=chunk.stop_row, at_row=middle,
        reason=error.message,
    )  # fmt: skip
    chunk.stop_row = middle


def retry_or_give_up(tx: Transaction, chunk: Chunk, error: StokerError, retries: RetryTimes) -> None:
    """Retry a chunk later that an error kept from being computed, or end its retries with row errors.

    A service that cannot be reached says nothing about the rows, so they wait for it, however long that takes.
    """
    _put_back(chunk)
    if isinstance(error, ServiceUnavailable):
        decision = decide(error, chunk.attempt, replace(retries.chunk_policy, max_attempts=ENDLESS))
    else:
        chunk.errors += 1
        decision = decide(error, chunk.errors, retries.chunk_policy)
    match decision:
        case RetryAt(delay_seconds):
            chunk.not_before = tx.time() + delay_seconds
            tx.record(
                chunk.job_id, "chunk.retried", start_row=chunk.start_row, reason=error.message,
                delay_seconds=round(delay_seconds, 3),
            )  # fmt: skip
        case GiveUp(reason) if chunk.error is None:
            give_up(tx, chunk, RowError(error.code, reason))
        case GiveUp(reason):  # not even its row errors could be recorded: its input cannot be read
            fail_job(tx, chunk.job_id, error.code, reason)


def give_up(tx: Transaction, chunk: Chunk, row_error: RowError) -> None:
    """Store an error on a pending chunk: the next holder records it for each row, with the row's key."""
    chunk.error, chunk.not_before = orjson.dumps(row_error.to_json()).decode(), 0.0
    tx.record(
        chunk.job_id, "chunk.given_up", start_row=chunk.start_row, stop_row=chunk.stop_row,
        code=row_error.code, reason=row_error.message,
    )  # fmt: skip


def count_job_crash(tx: Transaction, job_id: str, error: StokerError, retries: RetryTimes) -> None:
    """Count a crash that no chunk caused. The job waits, or fails after too many crashes without progress."""
    take_turn(tx, job_id)
    job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update(key_share=True))
    if job is None or job.state != JobState.RUNNING:
        return
    if job.kind == TRAINING and error.code == DeviceOutOfMemory.code:
        return  # the machine works, and waiting would not help: the next attempt has half the micro-batch
    if error.code == StoreUnwritable.code:  # nothing was computed, so no crash is counted; the job waits
        job.not_before = tx.time() + retries.retry_max_seconds
        return
    job.crashes += 1
    tx.flush()
    match decide(error, job.crashes, retries.job_policy):
        case RetryAt(delay_seconds):
            job.not_before = tx.time() + delay_seconds
        case GiveUp(reason):
            what = (
                "the training could not continue" if job.kind == TRAINING else "the runner could not work on this job"
            )
            fail_job(tx, job_id, error.code, f"{what}: {reason}")


def share_turn(tx: Transaction, job_id: str) -> None:
    """Keep a job from being failed or expired until this transaction ends; any number of commits may do so at once.

    It comes after the locks of leases and chunks, and before the lock of the job's row. A lock of the row itself would
    not do: on PostgreSQL, a transaction that waits for such a row can be overtaken by shared locks for ever.
    """
    tx.share_turn(f"job/{job_id}")


def take_turn(tx: Transaction, job_id: str) -> None:
    """Wait until no commit of the job is in progress, and let no other begin until this transaction ends."""
    tx.take_turn(f"job/{job_id}")


def fail_job(tx: Transaction, job_id: str, code: str, message: str) -> bool:
    """Fail a live job in the caller's transaction.

    Returns:
        Whether the job was live.
    """
    take_turn(tx, job_id)
    failed = (
        moving(Job, LIVE_JOB_STATES, JobState.FAILED)
        .where(col(Job.id) == job_id)
        .values(ended_at=tx.now(), error_code=code, error_message=message.replace("\0", "\ufffd"))
    )
    if not tx.changed(failed):
        return False
    job_ends.record_end(tx, job_id, JobState.FAILED, code=code, reason=message)
    return True


def settle_if_cancelling(tx: Transaction, job_id: str) -> bool:
    """Set a cancelling job to `cancelled` if none of its leases and children is live.

    Returns:
        Whether the job was cancelled by this call.
    """
    tx.flush()
    live = exists().where(col(Lease.job_id) == job_id, col(Lease.state).in_(LIVE_LEASE_STATES))
    settled = (
        moving(Job, JobState.CANCELLING, JobState.CANCELLED)
        .where(col(Job.id) == job_id, ~live, ~HAS_LIVE_CHILD)
        .values(ended_at=tx.now())
    )
    if not tx.changed(settled):
        return False
    job_ends.record_end(tx, job_id, JobState.CANCELLED)
    return True
