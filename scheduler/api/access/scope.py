"""What a key sees: objects of its own project, or all objects for the operator's key. Others do not exist for it."""

from __future__ import annotations

from sqlmodel import Session

from jobs.config.projects import OPERATOR
from jobs.db.tables import ApiKey
from jobs.ledger.records import pages
from jobs.ledger.records.pages import Owned


def scope_of(key: ApiKey) -> str | None:
    """The project whose objects a list shows; None for all projects."""
    return None if key.project == OPERATOR else key.project


def find(session: Session, table: type[Owned], noun_id: str, key: ApiKey) -> Owned:
    """Return the job, batch or webhook with this id.

    Raises:
        NotFound: There is none, or it belongs to another project; the message does not say which.
    """
    return pages.find(session, table, noun_id, project=key.project)
