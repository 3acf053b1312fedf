"""What happened to a job: its events, and the lines that its runners logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select
from sqlmodel import Session, col

from jobs.database import Database
from jobs.tables import Event, LogLine

if TYPE_CHECKING:
    from jobs.leases import WorkingLease

_LONGEST_LOG_LINE = 8192  # characters; the rest of a longer line is cut off


def record(session: Session, db: Database, job_id: str, name: str, **data: Any) -> None:
    """Append an event in the caller's transaction, so that it stands if and only if the change it tells does."""
    session.execute(insert(Event).values(job_id=job_id, at=db.now(), name=name, data=data))


def events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
    """A job's events with an id above `after`, oldest first."""
    query = select(Event).where(col(Event.job_id) == job_id, col(Event.id) > after).order_by(col(Event.id)).limit(limit)
    return list(session.scalars(query))


def append_log(db: Database, lease: WorkingLease, lines: Sequence[tuple[float, str]], *, max_lines: int) -> int:
    """Keep lines that a lease's runner logged, up to `max_lines` for the lease.

    Args:
        lines: pairs of Unix seconds and text; NUL characters, which PostgreSQL refuses, are replaced.

    Returns:
        How many of the lines were kept.
    """
    with db.write() as session:
        # By job too: the index is by job, and this reads under SQLite's write lock.
        of_lease = (col(LogLine.job_id) == lease.job_id, col(LogLine.lease_id) == lease.lease_id)
        kept = session.scalar(select(func.count()).where(*of_lease)) or 0
        room = lines[: max(0, max_lines - kept)]
        records = [
            {
                "job_id": lease.job_id,
                "lease_id": lease.lease_id,
                "slot_id": lease.slot_id,
                "attempt": lease.attempt,
                "at": at,
                "line": line[:_LONGEST_LOG_LINE].replace("\0", "\ufffd"),
            }
            for at, line in room
        ]
        if records:
            session.execute(insert(LogLine), records)
    return len(records)


def log_lines(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
    """A job's log lines with an id above `after`, oldest first."""
    query = (
        select(LogLine)
        .where(col(LogLine.job_id) == job_id, col(LogLine.id) > after)
        .order_by(col(LogLine.id))
        .limit(limit)
    )
    return list(session.scalars(query))
