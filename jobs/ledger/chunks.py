"""Claim, commit, return and fail chunks, fenced by the lease. Results are recorded exactly once here.

Each function is one short transaction that locks the lease's row first, then those of the chunks, then the job's. It
locks the lease only against its end, so that the heartbeats of a lease never wait for what its runner records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import case, select
from sqlmodel import Session, col

from jobs.config.times import RetryTimes
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.moves import check, move, moving
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import Chunk, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import LostLease, StokerError
from jobs.ledger import counts
from jobs.ledger.leasing import lost_work
from jobs.ledger.leasing.leases import fenced
from jobs.ledger.timing.stage_times import StageTimes


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that the lease now owns."""

    start_row: int
    stop_row: int
    locator: dict[str, Any]
    attempt: int
    crashes: int
    row_error: RowError | None = None
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
    with fenced(db, lease_id, is_shared=True) as (tx, lease):
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
    db: Database,
    lease_id: str,
    chunks: Sequence[ChunkResults],
    record: Callable[[Session], None] | None = None,
    stage_times: StageTimes | None = None,
    *,
    completes: bool = False,
) -> None:
    """Record computed chunks exactly once: results, chunk states and counters, fenced by the lease, in one transaction.

    If this was its last chunk, the job becomes `finalizing` or `completed`. If more rows failed than it allows, it
    fails; recorded results stay readable. On SQLite this happens in the same transaction, on PostgreSQL right after it.

    Args:
        chunks: Chunks that this lease claimed, each with one result per row.
        record: Writes the results into the sink's tables; called inside the transaction, after the fence.
        stage_times: Where the time of the lease has gone so far.
        completes: See `counts.settle`.

    Raises:
        LostLease: The lease no longer owns all of the chunks, or the job has ended; nothing was recorded.
        ServiceUnavailable: The connection to the database was lost. If that happened during the commit, whether the
            results were recorded is unknown until the chunks are read back.
    """
    for chunk in chunks:
        if [result.row_index for result in chunk.results] != list(range(chunk.start_row, chunk.stop_row)):
            raise ValueError(f"chunk {chunk.start_row}: must have one result for each row, in row order")
    with fenced(db, lease_id, is_shared=True) as (tx, lease):
        for chunk in chunks:
            _finish_chunk(tx, lease, chunk)
        if record is not None:
            record(tx)
        results = [result for chunk in chunks for result in chunk.results]
        may_end = counts.add(tx, lease, results, num_chunks=len(chunks), stage_times=stage_times)
        if may_end and tx.is_serial:
            counts.settle_now(tx, lease.job_id, completes=completes)
            may_end = False
    if may_end:
        counts.settle(db, lease.job_id, completes=completes)


def give_back(db: Database, lease_id: str, start_rows: Sequence[int]) -> None:
    """Return claimed chunks that were not computed. They become pending again, and the attempt does not count.

    Raises:
        LostLease: The lease is no longer active; its chunks are pending already.
    """
    with fenced(db, lease_id, is_shared=True) as (tx, lease):
        lost_work.return_chunks(tx, lease.id, start_rows)


def fail(db: Database, lease_id: str, start_row: int, error: StokerError, retries: RetryTimes) -> None:
    """Retry a claimed chunk later that a machine error kept from being computed, or end its retries.

    Raises:
        LostLease: The lease no longer owns the chunk.
    """
    with fenced(db, lease_id, is_shared=True) as (tx, lease):
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


def _as_claim(chunk: Chunk) -> Claim:
    row_error = None if chunk.error is None else RowError(**orjson.loads(chunk.error))
    return Claim(chunk.start_row, chunk.stop_row, chunk.locator, chunk.attempt, chunk.crashes, row_error)
