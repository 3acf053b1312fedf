"""What happened to a job: its events, one for each change of its state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.tables import Event


def record(session: Session, db: Database, job_id: str, name: str, **data: Any) -> None:
    """Append an event in the caller's transaction, so that it stands if and only if the change it tells does."""
    session.execute(insert(Event).values(job_id=job_id, at=db.now(), name=name, data=data))


def events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
    """A job's events with an id above `after`, oldest first."""
    query = select(Event).where(col(Event.job_id) == job_id, col(Event.id) > after).order_by(col(Event.id)).limit(limit)
    return list(session.scalars(query))
