"""Limits route: what a project may use, and what it uses now."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from jobs.config.limits import limits_of
from jobs.config.projects import ProjectName, sees
from jobs.errors import NotFound
from jobs.ledger import usage
from scheduler.api.auth import Key, require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses

router = APIRouter(
    prefix="/v1/limits", tags=["limits"], dependencies=[Depends(require_key)], responses=error_responses(400, 404)
)


class Allowance(BaseModel):
    """One limited resource of a project."""

    limit: int | None = Field(description="Null: no limit.")
    used: int


class LimitsView(BaseModel):
    """A project's limits."""

    object: Literal["limits"] = "limits"
    project: str
    queued_rows: Allowance = Field(description="Rows of its jobs and batches that are accepted and not done.")
    upload_bytes: Allowance = Field(description="Bytes of its uploads that have not expired.")
    requests_per_second: int | None = Field(description="Null: no limit.")


@router.get("")
def get_limits(
    context: InContext,
    key: Key,
    project: Annotated[
        ProjectName | None, Query(description="Another project than the key's own; for operators.")
    ] = None,
) -> LimitsView:
    """What the key's project may use, and what it uses now. Rows that are still being counted are not included."""
    name = project or key.project
    if not sees(key.project, name):
        raise NotFound(f"there is no project '{name}'")
    limits = limits_of(name, context.settings.projects)
    with context.database.read() as session:
        num_rows = usage.queue_of(session, name).num_rows
        num_bytes = usage.uploaded_bytes(session, name)
    return LimitsView(
        project=name,
        queued_rows=Allowance(limit=limits.queued_rows, used=num_rows),
        upload_bytes=Allowance(limit=limits.upload_bytes, used=num_bytes),
        requests_per_second=limits.requests_per_second,
    )
