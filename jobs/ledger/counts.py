"""What leases have recorded of a job, and its end once its last chunk is recorded or it has too many row errors.

On PostgreSQL, commits of several leases do not wait for each other, so the last of them cannot know, inside its
transaction, that it is the last. Each lease looks after its commit, when it holds no further chunk: whoever commits
last sees all commits. If a process dies between its commit and this look, the reaper's requeueing of idle jobs does the
same. On SQLite only one transaction writes at a time, so each looks within its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import exists, select, update
from sqlmodel import Session, col

from jobs.data import row_errors
from jobs.data.row_errors import FailedRow, RowErrors
from jobs.data.rows import Result
from jobs.db.database import Database
from jobs.db.moves import moving
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import IS_LEASED, Chunk, Job, Lease, LeaseCounts
from jobs.db.transaction import Transaction
from jobs.errors import LostLease, TooManyRowErrors
from jobs.ledger import job_ends
from jobs.ledger.leasing import lost_work
from jobs.ledger.timing.stage_times import StageTimes

_UNFINISHED = (ChunkState.PENDING, ChunkState.LEASED)


def add(
    tx: Transaction, lease: Lease, results: Sequence[Result], *, num_chunks: int, stage_times: StageTimes | None
) -> bool:
    """Add recorded results to the counters of their lease, in the transaction that records them.

    Returns:
        Whether the job may have ended by this, so that `settle` must be called after the commit, or `settle_now` if the
        transaction is serial.

    Raises:
        LostLease: The job has ended; nothing may be recorded.
    """
    counts = tx.get(LeaseCounts, lease.id, with_for_update=True)
    if counts is None:
        counts = LeaseCounts(lease_id=lease.id, job_id=lease.job_id)
        tx.add(counts)
    num_failed = sum(result.error is not None for result in results)
    counts.num_done += len(results)
    counts.num_failed += num_failed
    counts.num_tokens += sum(result.num_tokens for result in results)
    noted = row_errors.note(_row_errors(counts), results)
    counts.num_first, counts.is_mixed = noted.num_first, noted.is_mixed
    counts.row_error = None if noted.first is None else asdict(noted.first)
    if stage_times is not None:
        counts.stage_times = stage_times.as_json()
    tx.record(
        lease.job_id, "chunks.done", lease=lease.id, slot=lease.slot_id, chunks=num_chunks, rows=len(results),
        failed=num_failed,
    )  # fmt: skip
    _check_live(tx, lease.job_id)
    holds_more = exists().where(col(Chunk.lease_id) == lease.id, IS_LEASED)
    return num_failed > 0 or not tx.scalar(select(holds_more))


def settle(db: Database, job_id: str, *, completes: bool = False) -> None:
    """End a running job whose chunks are all recorded, or that has too many row errors. Otherwise this is one read.

    Args:
        completes: Whether the job completes at once, because the finalizer would have nothing to write.
    """
    with db.read() as session:
        error, is_done = _verdict(session, job_id)
    if error is None and not is_done:
        return
    with db.write() as tx:
        settle_now(tx, job_id, completes=completes)


def settle_now(tx: Transaction, job_id: str, *, completes: bool = False) -> bool:
    """End a running job as `settle` does, in the caller's transaction.

    Returns:
        Whether the job's work has ended: it is `finalizing`, `completed` or `failed`.
    """
    lost_work.take_turn(tx, job_id)
    error, is_done = _verdict(tx, job_id)
    if error is not None:
        return lost_work.fail_job(tx, job_id, error.code, error.message)
    if not is_done:
        return False
    sealed = moving(Job, JobState.RUNNING, JobState.FINALIZING).where(col(Job.id) == job_id)
    if not tx.changed(sealed):
        return False
    tx.record(job_id, "job.finalizing")
    if completes:
        job_ends.complete(tx, job_id)
    return True


def _check_live(tx: Transaction, job_id: str) -> None:
    """Keep the job from ending before this transaction, and forget its crashes, since it makes progress."""
    lost_work.share_turn(tx, job_id)
    row = tx.execute(select(col(Job.state), col(Job.crashes)).where(col(Job.id) == job_id)).one()
    if row.state not in (JobState.RUNNING, JobState.CANCELLING):
        raise LostLease("the job has ended")
    if row.crashes:
        tx.execute(update(Job).where(col(Job.id) == job_id).values(crashes=0))


def _verdict(session: Session, job_id: str) -> tuple[TooManyRowErrors | None, bool]:
    """The error that ends a running job, if there is one, and whether all of its chunks are recorded."""
    columns: list[Any] = [
        col(Job.num_rows), col(Job.num_failed), col(Job.batch_id), col(Job.max_row_errors), col(Job.num_first),
        col(Job.is_mixed), col(Job.row_error),
    ]  # fmt: skip
    of_job = select(*columns).where(col(Job.id) == job_id, col(Job.state) == JobState.RUNNING)
    job = session.execute(of_job).one_or_none()
    if job is None:
        return None, False
    unfinished = exists().where(col(Chunk.job_id) == job_id, col(Chunk.state).in_(_UNFINISHED))
    planned = exists().where(col(Chunk.job_id) == job_id)
    is_done = bool(session.scalar(select(planned & ~unfinished)))
    if job.num_failed == 0 or job.batch_id is not None:
        return None, is_done
    of_leases = session.scalars(select(LeaseCounts).where(col(LeaseCounts.job_id) == job_id))
    noted = row_errors.merge([_row_errors(job), *map(_row_errors, of_leases)])
    error = row_errors.verdict(job.max_row_errors, noted, num_rows=job.num_rows, num_failed=job.num_failed)
    return error, is_done


def _row_errors(counts: Any) -> RowErrors:
    """The summary of row errors in a row of `lease_counts`, or in a job's own columns."""
    first = None if counts.row_error is None else FailedRow(**counts.row_error)
    return RowErrors(counts.num_first, counts.is_mixed, first)
