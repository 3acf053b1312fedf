"""Server-sent events that follow a job in the database until it has ended; clients can resume a broken stream."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import orjson
from pydantic import BaseModel
from sqlalchemy import exists, select
from sqlalchemy.orm import defer
from sqlmodel import Session, col
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from jobs.db.states import LIVE_LEASE_STATES
from jobs.db.tables import ApiKey, Job, Lease
from jobs.errors import NotFound, StokerError, Unauthorized
from jobs.ledger.paging import fitting
from scheduler.api.context import Context
from scheduler.api.job_views import describe_jobs
from scheduler.api.listed import ShownSpec, shown_spec
from scheduler.api.live_key import is_valid
from scheduler.api.schemas import JobView, Sent, num_bytes

logger = logging.getLogger(__name__)

_SPEC: Any = Job.spec  # the mapped column
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_PAUSE_SHARE = (
    0.05  # of the time since the start: the end of a job of one second is seen within 50 ms, of a long one within 0.5 s
)
_SIGN_OF_LIFE_SECONDS = 5.0
_SETTLE_SECONDS = 5.0
_LINGER_SECONDS = 1.0
_PAGE = 1000


class Numbered(Sent, Protocol):
    """An entry of an append-only table."""

    @property
    def id(self) -> int:
        """Increases with each entry."""


Entry = TypeVar("Entry", bound=Numbered)


class Tail(Generic[Entry]):
    """Yields the new entries of an append-only table, each exactly once.

    PostgreSQL assigns ids at insert but shows rows at commit, so a smaller id may appear after a larger one. Ids of the
    last seconds are therefore read again.
    """

    def __init__(
        self, read: Callable[[Session, int, int], Iterable[Entry]], *, after: int, settle_seconds: float
    ) -> None:
        """
        Args:
            read: Returns entries with an id above the second argument, in order, at most as many as the third.
            after: Only entries with a larger id are returned.
            settle_seconds: How late an entry may appear; 0 if ids appear in order (SQLite).
        """
        self._read = read
        self._floor = after
        self._settle_seconds = settle_seconds
        self._seen: dict[int, float] = {}

    def more(self, session: Session, now: float) -> tuple[list[Entry], bool]:
        """Return the entries since the last call, as many as fit on a page, and whether there are more.

        Args:
            session: A read session.
            now: Time of a monotonic clock in seconds.
        """
        settled = [entry_id for entry_id, seen_at in self._seen.items() if seen_at + self._settle_seconds <= now]
        if settled:
            self._floor = max(settled)
            self._seen = {entry_id: at for entry_id, at in self._seen.items() if entry_id > self._floor}
        entries = self._read(session, self._floor, _PAGE + len(self._seen) + 1)
        fresh, has_more = fitting((entry for entry in entries if entry.id not in self._seen), _PAGE, num_bytes)
        self._seen.update(dict.fromkeys((entry.id for entry in fresh), now))
        return fresh, has_more


@dataclass(frozen=True, slots=True)
class _Look:
    """What one read of the database found."""

    entries: list[Any]
    has_more: bool
    """Whether more entries exist already."""
    job: JobView
    is_over: bool
    """Whether the job has ended and no lease is left whose runner could still log."""


class Follower:
    """Follows one job for one client."""

    def __init__(
        self,
        context: Context,
        key: ApiKey,
        job_id: str,
        read: Callable[[Session, int, int], Iterable[Any]],
        *,
        after: int,
        event_name: Callable[[Any], str],
        with_progress: bool,
        until_leases_end: bool,
    ) -> None:
        """
        Args:
            context: The app's context.
            key: The client's API key; the stream ends when it is revoked.
            job_id: The job to follow.
            read: See `Tail`.
            after: Only entries with a larger id are sent.
            event_name: Returns the event name of an entry.
            with_progress: Send the job as a `progress` event at once and whenever its state or counts have changed.
            until_leases_end: Continue after the job's end until its runners have had time to log their last lines.
        """
        settle = 0.0 if context.database.is_sqlite else _SETTLE_SECONDS
        self._context = context
        self._key = key
        self._job_id = job_id
        self._tail: Tail[Any] = Tail(read, after=after, settle_seconds=settle)
        self._event_name = event_name
        self._with_progress = with_progress
        self._until_leases_end = until_leases_end
        self._spec: ShownSpec | None = None

    def response(self) -> StreamingResponse:
        """Return the stream as a response."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(self._messages(), media_type="text/event-stream", headers=headers)

    async def _messages(self) -> AsyncIterator[bytes]:
        started = spoke = time.monotonic()
        over_since: float | None = None
        shown: Any = None
        yield b"retry: 1000\n\n"
        while True:
            try:
                look = await run_in_threadpool(self._look)
            except StokerError as error:  # the client resumes after the last entry it has
                logger.warning("the stream of job %s ends early: %s", self._job_id, error.message)
                return
            now = time.monotonic()
            messages = [_message(self._event_name(entry), entry, entry_id=entry.id) for entry in look.entries]
            visible = (look.job.state, look.job.counts, look.job.slots_held, look.job.waiting_reason)
            if self._with_progress and visible != shown:
                messages.append(_message("progress", look.job))
                shown = visible
            if messages:
                yield b"".join(messages)
                spoke = now
            elif now - spoke >= _SIGN_OF_LIFE_SECONDS:
                yield b": still here\n\n"
                spoke = now
            if look.is_over and not look.has_more:
                over_since = now if over_since is None else over_since
                if not self._until_leases_end or now - over_since >= _LINGER_SECONDS:
                    yield b"event: end\ndata: {}\n\n"
                    return
            pause = min(max(_FIRST_PAUSE_SECONDS, _PAUSE_SHARE * (now - started)), _LONGEST_PAUSE_SECONDS)
            if await self._context.closing.wait(pause):
                return

    def _look(self) -> _Look:
        """Read the job's state before the entries, so that the entries that led to a terminal state are included."""
        database = self._context.database
        with database.read() as session:
            if not is_valid(session, self._key):
                raise Unauthorized("the API key was revoked")
            job = session.get(Job, self._job_id, options=[defer(_SPEC)])  # may be megabytes, and never changes
            if job is None:
                raise NotFound(f"there is no job '{self._job_id}'")
            if self._spec is None:
                self._spec = shown_spec(session, job)
            is_over = job.state.is_terminal and not (self._until_leases_end and _has_live_lease(session, job.id))
            view = describe_jobs(session, self._context, [job], [self._spec])[0]
            entries, has_more = self._tail.more(session, time.monotonic())
        return _Look(entries, has_more, view, is_over)


def _has_live_lease(session: Session, job_id: str) -> bool:
    live = exists().where(col(Lease.job_id) == job_id, col(Lease.state).in_(LIVE_LEASE_STATES))
    return bool(session.scalar(select(live)))


def _message(name: str, data: BaseModel, *, entry_id: int | None = None) -> bytes:
    number = b"" if entry_id is None else b"id: %d\n" % entry_id
    return number + b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data.model_dump(mode="json")))
