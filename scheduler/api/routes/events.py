"""Routes of a job's history and of its runners' logs, as pages or as server-sent events until the job has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel
from sqlmodel import Session
from starlette.responses import StreamingResponse

from jobs.db.tables import ApiKey, Job
from jobs.ledger import logs
from jobs.ledger.records import history
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find
from scheduler.api.bodies.job_looks import EntryKind
from scheduler.api.bodies.job_stream import Follower
from scheduler.api.context import AfterNumber, Context, InContext, JobId, LongPageSize
from scheduler.api.errors import error_responses
from scheduler.api.views.history_views import EventView, LogView, event_view, log_view
from scheduler.api.views.job_views import JobView
from scheduler.api.views.lists import Page, bounded_page

router = APIRouter(
    prefix="/v1/jobs", tags=["history"], dependencies=[Depends(require_key)], responses=error_responses(400, 404)
)

_STREAM = "text/event-stream"


def _also_a_stream_of(*views: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The `responses` entry of a streaming route: each message holds one of these as JSON; the last one is empty."""
    schemas = [{"$ref": f"#/components/schemas/{view.__name__}"} for view in views]
    document = {"anyOf": [*schemas, {"type": "object", "maxProperties": 0}]}
    fields = {
        "id": {"type": "string", "description": "Value of `Last-Event-ID`: the stream continues after this id."},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": document},
    }
    message = {"type": "object", "properties": fields, "required": ["event", "data"]}
    return {200: {"content": {_STREAM: {"itemSchema": message}}, "description": "A page, or the stream."}}


def _read_events(session: Session, job_id: str, after: int, count: int) -> Iterator[EventView]:
    return map(event_view, history.events(session, job_id, after=after, limit=count))


def _read_logs(session: Session, job_id: str, after: int, count: int) -> Iterator[LogView]:
    return map(log_view, logs.lines_of(session, job_id, after=after, limit=count))


_EVENTS = EntryKind(_read_events, lambda event: str(event.name), until_leases_end=False)
_LOGS = EntryKind(_read_logs, lambda _line: "log", until_leases_end=True)

LastEventId = Annotated[
    int | None,
    Header(
        ge=0, le=2**63 - 1, description="Continue an interrupted stream after this id; takes precedence over `after`."
    ),
]
Follow = Annotated[
    bool | None, Query(description="Stream until the job has ended. If absent, the `Accept` header decides.")
]


@router.get("/{job_id}/events", response_model=Page[EventView], responses=_also_a_stream_of(EventView, JobView))
def get_events(
    request: Request,
    context: InContext,
    key: Key,
    job_id: JobId,
    after: AfterNumber = 0,
    limit: LongPageSize = 100,
    follow: Follow = None,
    progress: Annotated[
        bool, Query(description="Also send the job itself as `progress` events whenever it changes.")
    ] = False,
    last_event_id: LastEventId = None,
) -> Page[EventView] | StreamingResponse:
    """A job's history: a stream that ends with the event `end`, or a page for `Accept: application/json`."""

    if follow is None:
        follow = "application/json" not in request.headers.get("accept", "")
    return _respond(context, key, job_id, _EVENTS, after, limit, last_event_id, follow, with_progress=progress)


@router.get("/{job_id}/logs", response_model=Page[LogView], responses=_also_a_stream_of(LogView))
def get_logs(
    request: Request,
    context: InContext,
    key: Key,
    job_id: JobId,
    after: AfterNumber = 0,
    limit: LongPageSize = 100,
    follow: Follow = None,
    last_event_id: LastEventId = None,
) -> Page[LogView] | StreamingResponse:
    """Log lines of the job's runners: a page, unless `follow` or `Accept: text/event-stream` asks for a stream."""

    if follow is None:
        follow = _STREAM in request.headers.get("accept", "")
    return _respond(context, key, job_id, _LOGS, after, limit, last_event_id, follow)


def _respond(
    context: Context,
    key: ApiKey,
    job_id: str,
    kind: EntryKind,
    after: int,
    limit: int,
    last_event_id: int | None,
    follow: bool,
    *,
    with_progress: bool = False,
) -> Page[Any] | StreamingResponse:
    """The stream of a job's entries, or a page of them. Raises NotFound before the response starts."""
    with context.database.read() as session:
        find(session, Job, job_id, key)
        if not follow:
            return bounded_page(kind.read(session, job_id, after, limit + 1), limit)
    start = after if last_event_id is None else last_event_id
    return Follower(context, key, job_id, kind, after=start, with_progress=with_progress).response()
