"""What every paged list is cut by: the time of making, ids breaking ties, and a number of entries and of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import defer
from sqlmodel import Session, col

from jobs.db.tables import Batch, Job, StoredFile, Webhook, WebhookDelivery

Noun = TypeVar("Noun", Batch, Job, StoredFile, Webhook, WebhookDelivery)

Entry = TypeVar("Entry")

Order = Literal["asc", "desc"]

PAGE_BYTES = 8 * 2**20
"""Bytes of JSON on one page of a list; the entry that exceeds it is the page's last."""
FETCHED_ROWS = 16
"""Rows that a bounded page fetches at once: what it holds in memory beyond its bytes."""


def fitting(entries: Iterable[Entry], limit: int, num_bytes: Callable[[Entry], int]) -> tuple[list[Entry], bool]:
    """As many of the first entries as fit on a page, at least one; the rest is not asked for.

    Args:
        limit: the most on a page.
        num_bytes: what an entry takes of the page's bytes.

    Returns:
        The entries, and whether there is one more after them.
    """
    found: list[Entry] = []
    left = PAGE_BYTES
    for entry in entries:
        if len(found) == limit or left < 0:
            return found, True
        found.append(entry)
        left -= num_bytes(entry)
    return found, False


def page(
    session: Session,
    table: type[Noun],
    *conditions: ColumnElement[bool],
    last: Noun | None,
    limit: int,
    order: Order = "desc",
    large: Sequence[Any] = (),
) -> tuple[list[Noun], bool]:
    """The nouns that meet the conditions, as many as fit on a page.

    Args:
        last: of the page before; None for the first page.
        limit: the most on a page.
        order: `desc`, newest first, or `asc`.
        large: columns that are not read with the page, but each when it is asked for in the same session.

    Returns:
        The nouns, and whether there are more after them.
    """
    created, noun_id = col(table.created_at), col(table.id)
    query = select(table).where(*conditions).options(*(defer(column) for column in large))
    if last is not None:
        at, before = (created, noun_id), (last.created_at, last.id)
        query = query.where(tuple_(*at) < before if order == "desc" else tuple_(*at) > before)
    ordering = (created.desc(), noun_id.desc()) if order == "desc" else (created.asc(), noun_id.asc())
    found = list(session.scalars(query.order_by(*ordering).limit(limit + 1)))
    return found[:limit], len(found) > limit
