"""What the operator allows each project: rows in the queue, bytes of uploads, requests per second."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.config.projects import OPERATOR, ProjectName

_OTHERS = "*"


class ProjectLimits(BaseModel):
    """The limits of one project; none where a field is absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queued_rows: int | None = Field(default=None, ge=1)
    """Rows of its jobs and batches that are accepted and not done."""
    upload_bytes: int | None = Field(default=None, ge=1)
    """Of its uploads that have not expired."""
    requests_per_second: int | None = Field(default=None, ge=1)
    """Over all API processes together, `/healthz` excepted."""


Limits = dict[Literal["*"] | ProjectName, ProjectLimits]
"""Limits by project. `*` stands for every project without a table of its own, but for the operator's."""

_NONE = ProjectLimits()


def limits_of(project: str, limits: Limits) -> ProjectLimits:
    """The limits that a project has."""
    own = limits.get(project)
    if own is not None:
        return own
    return _NONE if project == OPERATOR else limits.get(_OTHERS, _NONE)
