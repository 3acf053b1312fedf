"""Stores and reads the lines that a job's runners logged, up to a number of lines per lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import func, insert, select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.tables import LogLine
from jobs.ledger.leasing.leases import WorkingLease
from jobs.ledger.records.pages import FETCHED_ROWS
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS


def append(db: Database, lease: WorkingLease, lines: Sequence[tuple[float, str]], *, max_lines: int) -> int:
    """Store lines that a lease's runner logged, up to `max_lines` for the lease.

    Args:
        lines: Pairs of Unix seconds and text. NUL characters, which PostgreSQL refuses, are replaced.

    Returns:
        The number of lines that were stored.
    """
    with db.write() as tx:
        # The condition on the job is for speed: the index is by job, and SQLite's write lock is held here.
        of_lease = (col(LogLine.job_id) == lease.job_id, col(LogLine.lease_id) == lease.lease_id)
        kept = tx.scalar(select(func.count()).where(*of_lease)) or 0
        room = lines[: max(0, max_lines - kept)]
        records = [
            {
                "job_id": lease.job_id,
                "lease_id": lease.lease_id,
                "slot_id": lease.slot_id,
                "attempt": lease.attempt,
                "at": at,
                "line": line[:LONGEST_ENTRY_CHARACTERS].replace("\0", "\ufffd"),
            }
            for at, line in room
        ]
        if records:
            tx.execute(insert(LogLine), records)
    return len(records)


def lines_of(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> Iterator[LogLine]:
    """Iterate over a job's log lines with ids above `after`, oldest first, fetched lazily."""
    query = (
        select(LogLine)
        .where(col(LogLine.job_id) == job_id, col(LogLine.id) > after)
        .order_by(col(LogLine.id))
        .limit(limit)
    )
    with session.scalars(query.execution_options(yield_per=FETCHED_ROWS)) as found:
        yield from found
