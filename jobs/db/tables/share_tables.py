"""How much of the slots each project has used."""

from __future__ import annotations

from sqlalchemy import Double
from sqlmodel import Field, SQLModel


class ProjectUse(SQLModel, table=True):
    """What a project's ended leases count at one time, for its fair share."""

    __tablename__ = "project_uses"

    project: str = Field(primary_key=True)
    num_slots: float = Field(sa_type=Double)
    """Slots that it has used on average lately: slot-seconds that decay, times ln 2, divided by their half-life."""
    at: float = Field(sa_type=Double)


class ProjectDay(SQLModel, table=True):
    """How long a project's leases held slots that ended on one day, for bills and `gpu_hours`. It never decays."""

    __tablename__ = "project_days"

    project: str = Field(primary_key=True)
    day: str = Field(primary_key=True)
    """The day in UTC, as `2026-11-30`."""
    slot_seconds: float = Field(sa_type=Double)
