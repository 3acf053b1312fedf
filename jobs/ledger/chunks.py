"""Claim, commit, return and fail chunks, fenced by the lease. Results are recorded exactly once here.

Each function is one short transaction that locks the lease's row first, then those of the chunks, then the job's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlalchemy import case, select, update
from sqlmodel import Session, col

from jobs.config.times import RetryTimes
from jobs.data import row_errors
from jobs.data.row_errors import FailedRow, RowErrors
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.moves import check, move, moving
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import Chunk, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import LostLease, StokerError
from jobs.ledger import lost_work
from jobs.ledger.leases import fenced


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that the lease now owns."""

    start_row: int
    stop_row: int
    locator: dict[str, Any]
    attempt: int
    crashes: int
    verdict: RowError | None = None
    """The error to record for each row instead of computing the chunk; None for a chunk to compute."""


@dataclass(frozen=True, slots=True)
class ChunkResults:
    """A computed chunk, ready to be recorded."""

    start_row: int
    stop_row: int
    results: Sequence[Result]
    """One result per row, in row order."""
    part: str | None = None
    """Store key of the file with these results, for file sinks."""


def claim(db: Database, lease_id: str, *, limit: int) -> list[Claim]:
    """Claim up to `limit` pending chunks of the lease's job, lowest rows first.

    Returns:
        The chunks; empty if nothing is pending, the job is ending, or the lease was asked to yield.

    Raises:
        LostLease: The lease is no longer active.
    """
    with fenced(db, lease_id) as (tx, lease):
        if (
            lease.yield_asked
            or tx.scalar(select(col(Job.state)).where(col(Job.id) == lease.job_id)) != JobState.RUNNING
        ):
            return []
        pending = (
            select(Chunk)
            .where(
                col(Chunk.job_id) == lease.job_id,
                col(Chunk.state) == ChunkState.PENDING,
                col(Chunk.not_before) <= tx.now(),
            )
            .order_by(col(Chunk.start_row))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        chunks = list(tx.scalars(pending))
        for chunk in chunks:
            move(chunk, ChunkState.LEASED)
            chunk.lease_id = lease_id
        if chunks:
            starts = [chunk.start_row for chunk in chunks]
            tx.record(lease.job_id, "chunks.claimed", lease=lease_id, slot=lease.slot_id, start_rows=starts)
        return [_as_claim(chunk) for chunk in chunks]


def commit(
    db: Database, lease_id: str, chunks: Sequence[ChunkResults], record: Callable[[Session], None] | None = None
) -> None:
    """Record computed chunks exactly once: results, chunk states and counters, fenced by the lease, in one transaction.

    The same transaction fails the job if more rows failed than it allows; recorded results stay readable.

    Args:
        chunks: Chunks that this lease claimed, each with one result per row.
        record: Writes the results into the sink's tables; called inside the transaction, after the fence.

    Raises:
        LostLease: The lease no longer owns all of the chunks, or the job has ended; nothing was recorded.
        ServiceUnavailable: The connection to the database was lost. If that happened during the commit, whether the
            results were recorded is unknown until the chunks are read back.
    """
    for chunk in chunks:
        if [result.row_index for result in chunk.results] != list(range(chunk.start_row, chunk.stop_row)):
            raise ValueError(f"chunk {chunk.start_row}: its results are not one for each row, in row order")
    with fenced(db, lease_id) as (tx, lease):
        for chunk in chunks:
            _finish_chunk(tx, lease, chunk)
        if record is not None:
            record(tx)
        _count(tx, lease, [result for chunk in chunks for result in chunk.results], len(chunks))


def give_back(db: Database, lease_id: str, start_rows: Sequence[int]) -> None:
    """Return claimed chunks that were not computed. They become pending again, and the attempt does not count.

    Raises:
        LostLease: The lease is no longer active; its chunks are pending already.
    """
    with fenced(db, lease_id) as (tx, lease):
        lost_work.return_chunks(tx, lease.id, start_rows)


def fail(db: Database, lease_id: str, start_row: int, error: StokerError, retries: RetryTimes) -> None:
    """Retry a claimed chunk later that a machine error kept from being computed, or end its retries.

    Raises:
        LostLease: The lease no longer owns the chunk.
    """
    with fenced(db, lease_id) as (tx, lease):
        chunk = tx.get(Chunk, (lease.job_id, start_row), with_for_update=True)
        if chunk is None or chunk.state != ChunkState.LEASED or chunk.lease_id != lease_id:
            raise LostLease
        lost_work.retry_or_give_up(tx, chunk, error, retries)


def _finish_chunk(tx: Transaction, lease: Lease, chunk: ChunkResults) -> None:
    check(ChunkState.LEASED, ChunkState.FAILED)
    finished = (
        moving(Chunk, ChunkState.LEASED, ChunkState.DONE)
        .where(
            col(Chunk.job_id) == lease.job_id,
            col(Chunk.start_row) == chunk.start_row,
            col(Chunk.stop_row) == chunk.stop_row,
            col(Chunk.lease_id) == lease.id,
        )
        .values(
            state=case((col(Chunk.error).is_(None), ChunkState.DONE.value), else_=ChunkState.FAILED.value),
            part=chunk.part,
        )
    )
    if tx.changed(finished) != 1:
        raise LostLease


def _count(tx: Transaction, lease: Lease, results: Sequence[Result], num_chunks: int) -> None:
    """Add to the job's counters. Its row is locked last and briefly; the last commit sees the counts of all others."""
    num_failed = sum(result.error is not None for result in results)
    counted = (
        update(Job)
        .where(col(Job.id) == lease.job_id, col(Job.state).in_((JobState.RUNNING, JobState.CANCELLING)))
        .values(
            num_done=Job.num_done + len(results),
            num_failed=Job.num_failed + num_failed,
            num_tokens=Job.num_tokens + sum(result.num_tokens for result in results),
            crashes=0,
        )
        .returning(
            col(Job.num_done), col(Job.num_rows), col(Job.num_failed), col(Job.state), col(Job.batch_id),
            col(Job.max_row_errors), col(Job.num_first), col(Job.is_mixed), col(Job.row_error),
        )
    )  # fmt: skip
    row = tx.execute(counted).one_or_none()
    if row is None:
        raise LostLease("the job has ended")
    tx.record(
        lease.job_id, "chunks.done", lease=lease.id, slot=lease.slot_id, chunks=num_chunks,
        rows=len(results), failed=num_failed, done=row.num_done, total=row.num_rows,
    )  # fmt: skip
    first = None if row.row_error is None else FailedRow(**row.row_error)
    before = RowErrors(row.num_first, row.is_mixed, first)
    noted = row_errors.note(before, results)
    if noted != before:  # safe: the job's row is locked by now, so no other commit can change these columns
        row_error = None if noted.first is None else asdict(noted.first)
        remembered = {"num_first": noted.num_first, "is_mixed": noted.is_mixed, "row_error": row_error}
        tx.execute(update(Job).where(col(Job.id) == lease.job_id).values(remembered))
    if row.state != JobState.RUNNING:
        return
    error = None
    if row.batch_id is None:
        error = row_errors.verdict(row.max_row_errors, noted, num_rows=row.num_rows, num_failed=row.num_failed)
    if error is not None:
        lost_work.fail_job(tx, lease.job_id, error.code, error.message)
    elif row.num_done == row.num_rows:
        tx.execute(moving(Job, JobState.RUNNING, JobState.FINALIZING).where(col(Job.id) == lease.job_id))
        tx.record(lease.job_id, "job.finalizing")


def _as_claim(chunk: Chunk) -> Claim:
    verdict = None if chunk.error is None else RowError(**orjson.loads(chunk.error))
    return Claim(chunk.start_row, chunk.stop_row, chunk.locator, chunk.attempt, chunk.crashes, verdict)
