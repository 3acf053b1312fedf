"""Lists as JSON: pages of bounded size, with the large values of specs and batch errors left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import orjson
from pydantic import BaseModel, Field
from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute
from sqlmodel import Session, col

from jobs.db.tables import Batch, Job
from jobs.ledger.records.pages import fitting

Entry = TypeVar("Entry", bound=BaseModel)

WHOLE_CHARACTERS = 16 * 2**10
"""Specs of up to this many characters of JSON are shown whole."""
PART_BYTES = 2**10
"""In longer specs, values of more than this many bytes of JSON are left out."""
LISTED_ERRORS = 10
"""The most errors of one batch that a list shows."""


class Page(BaseModel, Generic[Entry]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Entry]
    first_id: str | int | None = Field(description="Id of the first entry of this page.")
    last_id: str | int | None = Field(
        description="Id of the last entry of this page; pass it as `after` to get the next page."
    )
    has_more: bool


def page(entries: Sequence[Entry], *, has_more: bool = False, id_field: str = "id") -> Page[Entry]:
    """A page with all of these entries."""
    ids = [getattr(entry, id_field) for entry in entries]
    return Page(
        data=list(entries),
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


def bounded_page(entries: Iterable[Entry], limit: int, *, has_more: bool = False) -> Page[Entry]:
    """A page with as many of these entries as fit.

    Args:
        limit: Most entries of the page.
        has_more: Whether there are more entries after these.
    """
    found, is_cut = fitting(entries, limit, num_bytes)
    return page(found, has_more=has_more or is_cut)


class Sent(Protocol):
    """Something that is sent as JSON: a pydantic model, such as an entry of a list."""

    def model_dump_json(self) -> str:
        """The JSON text."""


def num_bytes(entry: Sent) -> int:
    """Bytes of an entry's JSON."""
    return len(entry.model_dump_json().encode())


# -- shortened values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownSpec:
    """A spec as a list shows it."""

    spec: dict[str, Any]
    is_cut: bool


def shown_specs(session: Session, jobs: Sequence[Job]) -> list[ShownSpec]:
    """The specs of the first jobs, as many as fit on one page, at least one.

    Large specs are read one by one, so that at most one of them is in memory.
    """
    lengths = _lengths(session, Job.spec, [job.id for job in jobs])
    small = [job_id for job_id, length in lengths.items() if length <= WHOLE_CHARACTERS]
    found = session.execute(select(col(Job.id), col(Job.spec)).where(col(Job.id).in_(small)))
    whole: Mapping[str, dict[str, Any]] = {row[0]: row[1] for row in found}
    shown: list[ShownSpec] = []
    for job in fitting(jobs, len(jobs), lambda job: lengths[job.id])[0]:
        if job.id in whole:
            shown.append(ShownSpec(whole[job.id], is_cut=False))
        else:
            spec = session.scalars(select(col(Job.spec)).where(col(Job.id) == job.id)).one()
            shown.append(ShownSpec(_cut(spec), is_cut=True))
    return shown


def shown_spec(session: Session, job: Job) -> ShownSpec:
    """The spec of one job as a list shows it."""
    return shown_specs(session, [job])[0]


def shown_errors(session: Session, batches: Sequence[Batch]) -> list[list[dict[str, Any]] | None]:
    """The first errors of each batch, for as many batches as fit on one page, at least one."""
    lengths = _lengths(session, Batch.errors, [batch.id for batch in batches])
    shown: list[list[dict[str, Any]] | None] = []
    for batch in fitting(batches, len(batches), lambda batch: lengths[batch.id])[0]:
        if lengths[batch.id] <= len("null"):
            shown.append(None)
        else:
            errors = session.scalars(select(col(Batch.errors)).where(col(Batch.id) == batch.id)).one()
            shown.append(None if errors is None else errors[:LISTED_ERRORS])
    return shown


def _lengths(session: Session, column: Any, ids: Sequence[str]) -> dict[str, int]:
    """Row id -> number of characters of the column's JSON."""
    attribute: InstrumentedAttribute[Any] = column
    row_id = attribute.class_.id
    query = select(row_id, func.coalesce(func.length(cast(attribute, Text)), 0)).where(row_id.in_(ids))
    return {row[0]: row[1] for row in session.execute(query)}


def _cut(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec without its large values; a large mapping in it, such as `input`, keeps its small values."""
    kept: dict[str, Any] = {}
    for name, value in spec.items():
        if len(orjson.dumps(value)) <= PART_BYTES:
            kept[name] = value
        elif isinstance(value, dict) and len(value) <= PART_BYTES:
            kept[name] = {inner: each for inner, each in value.items() if len(orjson.dumps(each)) <= PART_BYTES}
    return kept
