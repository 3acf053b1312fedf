"""What the operator sets for each project: limits of rows, uploads and requests, and its share of the slots."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.config.projects import OPERATOR, ProjectName

OTHERS = "*"


class ProjectLimits(BaseModel):
    """The limits of one project; None means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queued_rows: int | None = Field(default=None, ge=1)
    """Maximum number of accepted, unfinished rows of the project's jobs and batches."""
    upload_bytes: int | None = Field(default=None, ge=1)
    """Maximum total size of the project's uploads that have not expired."""
    requests_per_second: int | None = Field(default=None, ge=1)
    """Maximum rate over all API processes together, without requests to `/healthz`."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """The project's part of the slots that several want, relative to others; with 0, it gets what no other can use."""
    slots: int | None = Field(default=None, ge=0)
    """Slots that the project gets before others. Its trainings hold no more than these; bulk jobs may borrow others."""
    gpu_hours: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Hours for which its leases may hold slots in a month (UTC); then no slot is granted to it."""


Limits = dict[Literal["*"] | ProjectName, ProjectLimits]
"""Limits by project. `*` applies to each project without its own table, except the operator's."""

_NONE = ProjectLimits()


def limits_of(project: str, limits: Limits) -> ProjectLimits:
    """The limits that apply to a project."""
    own = limits.get(project)
    if own is not None:
        return own
    return _NONE if project == OPERATOR else limits.get(OTHERS, _NONE)
