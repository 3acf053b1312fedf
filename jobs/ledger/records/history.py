"""Reads the events of a job, which `Transaction.record` writes."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.tables import Event
from jobs.ledger.records.pages import FETCHED_ROWS


def events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> Iterator[Event]:
    """Iterate over a job's events with ids above `after`, oldest first, fetched lazily."""
    query = select(Event).where(col(Event.job_id) == job_id, col(Event.id) > after).order_by(col(Event.id)).limit(limit)
    with session.scalars(query.execution_options(yield_per=FETCHED_ROWS)) as found:
        yield from found
