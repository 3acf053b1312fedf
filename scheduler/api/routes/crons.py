"""Routes of cron entries: add, list, retrieve and remove specs that are submitted at regular times."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from jobs.config.catalogue import with_catalogue
from jobs.db.tables import Cron
from jobs.ledger.groups import crons
from jobs.specs.schedule import LONGEST_EXPRESSION, parse_schedule
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find, scope_of
from scheduler.api.bodies.request_body import parse_request, read_document
from scheduler.api.context import AfterId, CronId, InContext, PageSize
from scheduler.api.errors import error_responses
from scheduler.api.views.lists import Page, bounded_page
from scheduler.control.cron import read_cron_spec
from scheduler.control.planning.planner import check_submission

router = APIRouter(
    prefix="/v1/crons", tags=["cron"], dependencies=[Depends(require_key)], responses=error_responses(400)
)


class CronRequest(BaseModel):
    """The request body that adds a cron entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the entry, unique in its project."
    )
    schedule: str = Field(
        max_length=LONGEST_EXPRESSION,
        description="A cron expression of five fields: minute, hour, day of the month, month, day of the week.",
    )
    timezone: str = Field(
        default="UTC", max_length=100, description="The time zone of the schedule, such as `Europe/Zurich`."
    )
    spec: dict[str, Any] = Field(description="The spec to submit, as for `POST /v1/jobs`.")


class CronView(BaseModel):
    """A cron entry. Times are Unix seconds."""

    id: str
    object: Literal["cron"] = "cron"
    name: str
    project: str
    schedule: str
    timezone: str
    spec: dict[str, Any]
    next_at: float = Field(description="When it fires next.")
    last_at: float | None = Field(description="The scheduled time at which it fired last.")
    last_job_id: str | None = Field(description="The last job that it submitted.")
    last_error: str | None = Field(description="Why it submitted no job at `last_at`; null if it did.")
    created_at: float


class RemovedCron(BaseModel):
    """The response to a removal."""

    id: str
    object: Literal["cron"] = "cron"
    deleted: Literal[True] = True


_BODY = {"application/json": {"schema": {"$ref": f"#/components/schemas/{CronRequest.__name__}"}}}


@router.post(
    "",
    status_code=201,
    responses=error_responses(403, 404, 408, 409, 413),
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
def add_cron(context: InContext, key: Key, document: Annotated[dict[str, Any], Depends(read_document)]) -> CronView:
    """Add a cron entry to the key's project. Its spec is checked as at a submission. 409 if the name is taken."""
    new = parse_request(CronRequest, document, noun="a cron entry")
    schedule = parse_schedule(new.schedule, new.timezone)
    spec = read_cron_spec(new.spec)
    settings = context.settings
    named = with_catalogue(spec, settings.models)
    check_submission(named, rules=settings, database=context.database, store=context.store, project=key.project)
    return _cron_view(crons.add(context.database, new.name, schedule, spec, project=key.project))


@router.get("", responses=error_responses(404))
def list_crons(context: InContext, key: Key, after: AfterId = None, limit: PageSize = 20) -> Page[CronView]:
    """Cron entries of the key's project, newest first."""
    with context.database.read() as session:
        if after is not None:
            find(session, Cron, after, key)
        found, has_more = crons.list_crons(session, project=scope_of(key), after=after, limit=limit)
    return bounded_page(map(_cron_view, found), limit, has_more=has_more)


@router.get("/{cron_id}", responses=error_responses(404))
def get_cron(context: InContext, key: Key, cron_id: CronId) -> CronView:
    """One cron entry."""
    with context.database.read() as session:
        return _cron_view(find(session, Cron, cron_id, key))


@router.delete("/{cron_id}", responses=error_responses(404))
def remove_cron(context: InContext, key: Key, cron_id: CronId) -> RemovedCron:
    """Remove a cron entry. Jobs that it submitted are not changed."""
    with context.database.read() as session:
        find(session, Cron, cron_id, key)
    crons.remove(context.database, cron_id)
    return RemovedCron(id=cron_id)


def _cron_view(entry: Cron) -> CronView:
    return CronView(**entry.model_dump())
