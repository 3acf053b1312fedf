"""What happened to a job: its events, one for each change of its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.tables import Event
from jobs.ledger.paging import FETCHED_ROWS
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS


def record(session: Session, db: Database, job_id: str, name: str, **data: Any) -> None:
    """Append an event in the caller's transaction, so that it stands if and only if the change it tells does.

    Texts are cut to `LONGEST_ENTRY_CHARACTERS`.
    """
    told = {key: value[:LONGEST_ENTRY_CHARACTERS] if isinstance(value, str) else value for key, value in data.items()}
    session.execute(insert(Event).values(job_id=job_id, at=db.now(), name=name, data=told))


def events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> Iterator[Event]:
    """A job's events with an id above `after`, oldest first, fetched as they are asked for."""
    query = select(Event).where(col(Event.job_id) == job_id, col(Event.id) > after).order_by(col(Event.id)).limit(limit)
    with session.scalars(query.execution_options(yield_per=FETCHED_ROWS)) as found:
        yield from found
