"""Records by when a waiting gang gets the slots that are reserved for it, once that is known and when it has moved."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.tables import Event

RESERVED = "job.reserved"
"""Name of the event."""
_SHARE_MOVED = 0.1  # of the wait that was recorded; a smaller change is not recorded


def record_reservation(db: Database, job_id: str, slot_ids: Sequence[str], at: float) -> bool:
    """Record by when a job gets some slots, unless the last such event still holds.

    Args:
        at: Unix seconds.

    Returns:
        Whether an event was recorded.
    """
    latest = (
        select(col(Event.at), col(Event.data))
        .where(col(Event.job_id) == job_id, col(Event.name) == RESERVED)
        .order_by(col(Event.id).desc())
        .limit(1)
    )
    with db.read() as session:
        last = session.execute(latest).one_or_none()
    if last is not None:
        expected = float(last.data["until"])
        if abs(at - expected) <= _SHARE_MOVED * max(0.0, expected - last.at):
            return False
    with db.write() as tx:
        tx.record(job_id, RESERVED, until=at, slots=list(slot_ids))
    return True
