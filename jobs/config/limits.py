"""Limits that the operator sets for each project: queued rows, bytes of uploads, requests per second."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.config.projects import OPERATOR, ProjectName

_OTHERS = "*"


class ProjectLimits(BaseModel):
    """The limits of one project; None means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queued_rows: int | None = Field(default=None, ge=1)
    """Maximum number of accepted, unfinished rows of the project's jobs and batches."""
    upload_bytes: int | None = Field(default=None, ge=1)
    """Maximum total size of the project's uploads that have not expired."""
    requests_per_second: int | None = Field(default=None, ge=1)
    """Maximum rate over all API processes together, without requests to `/healthz`."""


Limits = dict[Literal["*"] | ProjectName, ProjectLimits]
"""Limits by project. `*` applies to each project without its own table, except the operator's."""

_NONE = ProjectLimits()


def limits_of(project: str, limits: Limits) -> ProjectLimits:
    """The limits that apply to a project."""
    own = limits.get(project)
    if own is not None:
        return own
    return _NONE if project == OPERATOR else limits.get(_OTHERS, _NONE)
