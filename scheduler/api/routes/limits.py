"""Routes of limits, of shares of the slots, and of their current use."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from jobs.config.limits import OTHERS, limits_of
from jobs.config.projects import ProjectName, sees
from jobs.errors import NotFound
from jobs.ledger.accounts import usage
from jobs.ledger.accounts.project_use import Use, uses
from scheduler.api.access.auth import Key, require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses
from scheduler.api.views.share_views import SharesView, ShareView, share_view

router = APIRouter(
    prefix="/v1/limits", tags=["limits"], dependencies=[Depends(require_key)], responses=error_responses(400, 404)
)


class Allowance(BaseModel):
    """One limited resource of a project."""

    limit: int | None = Field(description="Null if there is no limit.")
    used: int


class LimitsView(BaseModel):
    """A project's limits."""

    object: Literal["limits"] = "limits"
    project: str
    queued_rows: Allowance = Field(description="Rows of the project's jobs and batches that are accepted and not done.")
    upload_bytes: Allowance = Field(description="Bytes of the project's uploads that have not expired.")
    requests_per_second: int | None = Field(description="Null if there is no limit.")
    share: ShareView


@router.get("")
def get_limits(
    context: InContext,
    key: Key,
    project: Annotated[
        ProjectName | None,
        Query(description="Name of the project. Only an operator's key may name another project than its own."),
    ] = None,
) -> LimitsView:
    """The limits of the key's project and their current use. Rows that are still being counted are not included."""
    name = project or key.project
    if not sees(key.project, name):
        raise NotFound(f"there is no project '{name}'")
    limits = limits_of(name, context.settings.projects)
    with context.database.read() as session:
        num_rows = usage.queue_of(session, name).num_rows
        num_bytes = usage.uploaded_bytes(session, name)
        use = uses(session, session.time()).get(name, Use())
    return LimitsView(
        project=name,
        queued_rows=Allowance(limit=limits.queued_rows, used=num_rows),
        upload_bytes=Allowance(limit=limits.upload_bytes, used=num_bytes),
        requests_per_second=limits.requests_per_second,
        share=share_view(name, limits, use),
    )


@router.get("/shares")
def get_shares(context: InContext, key: Key) -> SharesView:
    """The share of each project that holds slots, has used some, or is named in `stoker.toml`; an operator sees all."""
    limits = context.settings.projects
    with context.database.read() as session:
        found = uses(session, session.time())
    named = {str(name) for name in limits if name != OTHERS}
    return SharesView(
        data=[
            share_view(name, limits_of(name, limits), found.get(name, Use()))
            for name in sorted({*found, *named, key.project})
            if sees(key.project, name)
        ]
    )
