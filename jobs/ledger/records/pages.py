"""Pages of lists: ordered by time of creation, then by id, and limited in entries and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import defer
from sqlmodel import Session, col

from jobs.config.projects import OPERATOR, sees
from jobs.db.tables import Batch, Cron, Job, StoredFile, Webhook, WebhookDelivery
from jobs.errors import NotFound

Noun = TypeVar("Noun", Batch, Cron, Job, StoredFile, Webhook, WebhookDelivery)
Owned = TypeVar("Owned", Batch, Cron, Job, Webhook)

Entry = TypeVar("Entry")

Order = Literal["asc", "desc"]

PAGE_BYTES = 8 * 2**20
"""Limit of a page in bytes of JSON; the entry that exceeds it is the last of its page."""
FETCHED_ROWS = 16
"""Number of rows fetched at once, which are in memory in addition to the page."""


def fitting(entries: Iterable[Entry], limit: int, num_bytes: Callable[[Entry], int]) -> tuple[list[Entry], bool]:
    """Take the first entries, as many as fit on a page but at least one, and at most one more from the iterable.

    Args:
        limit: Largest number of entries on a page.
        num_bytes: Returns the size of an entry in the page.

    Returns:
        The entries, and whether more follow.
    """
    found: list[Entry] = []
    left = PAGE_BYTES
    for entry in entries:
        if len(found) == limit or left < 0:
            return found, True
        found.append(entry)
        left -= num_bytes(entry)
    return found, False


def find(session: Session, table: type[Owned], noun_id: str, *, project: str = OPERATOR) -> Owned:
    """Return the job, batch, cron entry or webhook with this id.

    Args:
        project: The project that asks; the operator's sees those of all projects.

    Raises:
        NotFound: There is none, or it belongs to another project; the message does not say which.
    """
    found = session.get(table, noun_id)
    if found is None or not sees(project, found.project):
        raise NotFound(f"there is no {table.__name__.lower()} '{noun_id}'")
    return found


def owned_page(
    session: Session,
    table: type[Owned],
    *conditions: ColumnElement[bool],
    project: str | None,
    after: str | None,
    limit: int,
    order: Order = "desc",
    large: Sequence[Any] = (),
) -> tuple[list[Owned], bool]:
    """Read a page of a project's jobs, batches, cron entries or webhooks; see `page`.

    Args:
        project: The project that owns them; None for all projects.
        after: Id of the last one of the previous page; None for the first page.

    Raises:
        NotFound: There is none with the id `after`.
    """
    if project is not None:
        conditions = (*conditions, col(table.project) == project)
    last = None if after is None else find(session, table, after)
    return page(session, table, *conditions, last=last, limit=limit, order=order, large=large)


def page(
    session: Session,
    table: type[Noun],
    *conditions: ColumnElement[bool],
    last: Noun | None,
    limit: int,
    order: Order = "desc",
    large: Sequence[Any] = (),
) -> tuple[list[Noun], bool]:
    """Read a page of the rows of a table that meet the conditions.

    Args:
        last: Last row of the previous page; None for the first page.
        limit: Largest number of rows on a page.
        order: Either `desc`, newest first, or `asc`.
        large: Columns that are not read with the page, but when they are first used within the same session.

    Returns:
        The rows, and whether more follow.
    """
    created, noun_id = col(table.created_at), col(table.id)
    query = select(table).where(*conditions).options(*(defer(column) for column in large))
    if last is not None:
        at, before = (created, noun_id), (last.created_at, last.id)
        query = query.where(tuple_(*at) < before if order == "desc" else tuple_(*at) > before)
    ordering = (created.desc(), noun_id.desc()) if order == "desc" else (created.asc(), noun_id.asc())
    found = list(session.scalars(query.order_by(*ordering).limit(limit + 1)))
    return found[:limit], len(found) > limit
