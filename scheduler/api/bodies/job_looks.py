"""One look at a job in the database for all streams that follow it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel
from sqlalchemy import exists, select
from sqlalchemy.orm import defer
from sqlmodel import Session, col

from jobs.db.states import LIVE_LEASE_STATES
from jobs.db.tables import ApiKey, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import NotFound
from jobs.ledger.records.pages import fitting
from scheduler.api.access.live_key import valid_keys
from scheduler.api.bodies.tail import Tail
from scheduler.api.context import Context
from scheduler.api.views.describe_jobs import describe_jobs, sweep_view
from scheduler.api.views.lists import ShownSpec, num_bytes, shown_spec

_SPEC: Any = Job.spec  # the mapped column
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class EntryKind:
    """A kind of entry that a stream of a job sends: its events, or the log lines of its runners."""

    read: Callable[[Session, str, int, int], Iterable[Any]]
    """Returns the entries of a job (the second argument) with ids above the third, in order, at most as many as the
    fourth says."""
    event_name: Callable[[Any], str]
    """Returns the event name of an entry."""
    until_leases_end: bool
    """Whether the stream continues after the job's end until its runners have had time to log their last lines."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one stream wants to know of its job."""

    key: ApiKey
    """The key of the stream's client."""
    kind: EntryKind
    tail: Tail
    with_progress: bool
    """Whether the stream sends the job itself."""
    spec: ShownSpec | None
    """The job's spec from an earlier look. It may be megabytes long, and never changes."""


@dataclass(frozen=True, slots=True)
class Message:
    """An entry as it is sent."""

    id: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """The job itself as it is sent."""

    visible: tuple[Any, ...]
    """What must have changed for the job to be sent again."""
    content: bytes
    spec: ShownSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look found for one stream."""

    is_key_valid: bool
    """Whether the client's key was not revoked. If it was, there are no entries."""
    entries: list[Message]
    has_more: bool
    """Whether more entries may exist already."""
    progress: Progress | None
    is_over: bool
    """Whether the job has ended and no lease is left whose runner could still send entries."""


def look(context: Context, job_id: str, asks: Sequence[Ask]) -> list[Seen]:
    """Look at a job once and answer each of its streams.

    The job's state is read before the entries, so that the entries that led to a terminal state are included.

    Raises:
        NotFound: The job was deleted.
    """
    with context.database.read() as session:
        valid = valid_keys(session, {ask.key.id for ask in asks})
        job = session.get(Job, job_id, options=[defer(_SPEC)])
        if job is None:
            raise NotFound(f"there is no job '{job_id}'")
        has_ended = job.state.is_terminal
        may_log = has_ended and any(ask.kind.until_leases_end for ask in asks) and _has_live_lease(session, job_id)
        progress = _progress(session, context, job, asks) if any(ask.with_progress for ask in asks) else None
        entries = _entries(session, job_id, [ask for ask in asks if ask.key.id in valid], time.monotonic())
    return [
        Seen(
            is_key_valid=ask.key.id in valid,
            entries=entries[ask.tail][0] if ask.tail in entries else [],
            has_more=ask.tail in entries and entries[ask.tail][1],
            progress=progress if ask.with_progress else None,
            is_over=has_ended and not (ask.kind.until_leases_end and may_log),
        )
        for ask in asks
    ]


def _progress(session: Transaction, context: Context, job: Job, asks: Sequence[Ask]) -> Progress:
    spec = next((ask.spec for ask in asks if ask.spec is not None), None) or shown_spec(session, job)
    view = describe_jobs(session, context, [job], [spec])[0]
    if job.state.is_terminal:
        view = view.model_copy(update={"sweep": sweep_view(session, job)})
    visible = view.state, view.counts, view.slots_held, view.waiting_reason
    return Progress(visible, _message("progress", view), spec)


def _entries(session: Session, job_id: str, asks: Sequence[Ask], now: float) -> dict[Tail, tuple[list[Message], bool]]:
    """The new entries of each stream, and whether there may be more. Streams that are equally far share a read."""
    groups: dict[tuple[EntryKind, int], list[Tail]] = {}
    for ask in asks:
        groups.setdefault((ask.kind, ask.tail.floor(now)), []).append(ask.tail)
    found: dict[Tail, tuple[list[Message], bool]] = {}
    for (kind, floor), tails in groups.items():
        most = _PAGE + max(tail.num_seen for tail in tails) + 1
        unsent = (
            entry for entry in kind.read(session, job_id, floor, most) if any(tail.is_new(entry.id) for tail in tails)
        )
        page, has_more = fitting(unsent, _PAGE, num_bytes)
        messages = [Message(entry.id, _message(kind.event_name(entry), entry, entry_id=entry.id)) for entry in page]
        found |= {tail: (tail.take(messages, now), has_more) for tail in tails}
    return found


def _has_live_lease(session: Session, job_id: str) -> bool:
    live = exists().where(col(Lease.job_id) == job_id, col(Lease.state).in_(LIVE_LEASE_STATES))
    return bool(session.scalar(select(live)))


def _message(name: str, data: BaseModel, *, entry_id: int | None = None) -> bytes:
    number = b"" if entry_id is None else b"id: %d\n" % entry_id
    return number + b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data.model_dump(mode="json")))
