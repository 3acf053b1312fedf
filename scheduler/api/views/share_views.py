"""The JSON of a project's share of the slots."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.config.limits import ProjectLimits
from jobs.ledger.accounts.project_use import Use


class GpuHours(BaseModel):
    """Hours for which a project's leases held slots this month (UTC)."""

    limit: float | None = Field(description="Null if there is no limit.")
    used: float


class ShareView(BaseModel):
    """A project's share of the slots, and what it uses."""

    object: Literal["share"] = "share"
    project: str
    weight: float = Field(description="Its part of the slots that several projects want.")
    slots: int | None = Field(description="Slots that it gets before others, and that its trainings may hold at most.")
    slots_held: int
    slots_lately: float = Field(description="Slots that it has used on average lately; a day ago counts half.")
    gpu_hours: GpuHours


class SharesView(BaseModel):
    """The shares of several projects."""

    object: Literal["list"] = "list"
    data: list[ShareView]


def share_view(project: str, limits: ProjectLimits, use: Use) -> ShareView:
    """The JSON of one project's share."""
    return ShareView(
        project=project,
        weight=limits.weight,
        slots=limits.slots,
        slots_held=use.num_held,
        slots_lately=round(use.num_slots, 3),
        gpu_hours=GpuHours(limit=limits.gpu_hours, used=round(use.month_seconds / 3600, 3)),
    )
