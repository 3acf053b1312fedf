"""Cron entries: specs that are submitted at regular times."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, UniqueConstraint
from sqlmodel import Field, SQLModel

from jobs.db.tables.columns import text_column


class Cron(SQLModel, table=True):
    """A spec that is submitted at the times of a schedule."""

    __tablename__ = "crons"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: str = Field(primary_key=True)
    project: str
    name: str
    schedule: str
    """A cron expression of five fields."""
    timezone: str
    spec: dict[str, Any] = Field(sa_type=JSON)
    next_at: float = Field(sa_type=Double)
    """The next time at which it fires. Also the token of a firing: only one transaction moves it on."""
    last_at: float | None = Field(default=None, sa_type=Double)
    """The scheduled time that was dealt with last."""
    last_job_id: str | None = None
    """The last job that it submitted."""
    last_error: str | None = Field(default=None, sa_column=text_column(nullable=True))
    """Why no job was submitted at `last_at`; None if one was."""
    created_at: float = Field(sa_type=Double)
