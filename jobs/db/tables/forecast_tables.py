"""Measured speeds, the forecasts that are made from them, and how far these were wrong."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, Index
from sqlmodel import Field, SQLModel

from jobs.db.tables.columns import BIG_ID, text_column


class SpeedRecord(SQLModel, table=True):
    """How fast equal work was on one kind of device: an exponential mean of the logarithm of its speed."""

    __tablename__ = "speeds"

    id: str = Field(primary_key=True)
    """Digest of the columns that identify the work and the device; paths of models may be too long for an index."""
    model: str = Field(sa_column=text_column())
    revision: str = Field(sa_column=text_column())
    task: str = Field(sa_column=text_column())
    settings: str = Field(sa_column=text_column())
    dtype: str = Field(sa_column=text_column())
    device_name: str = Field(sa_column=text_column())
    num_slots: int
    """Number of slots that worked together; 1 for inference, whose speed is that of each slot."""
    unit: str = Field(sa_column=text_column())
    """What is counted per second: `rows`, `tokens` or `steps`."""
    log_mean: float = Field(sa_type=Double)
    """Mean of the natural logarithm of the speed."""
    log_variance: float = Field(sa_type=Double)
    """Variance of that logarithm."""
    seconds: float = Field(sa_type=Double)
    """Seconds of work that the mean stands for; old work counts less and less."""
    measured_at: float = Field(sa_type=Double)


class ForecastRecord(SQLModel, table=True):
    """When a live job will start and end, as the latest forecast says, and as the first one said.

    The JSON columns have the fields of `jobs.ledger.timing.forecasts.ForecastTime`.
    """

    __tablename__ = "forecasts"

    job_id: str = Field(primary_key=True)
    start: dict[str, float | None] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    end: dict[str, float | None] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    first_start: dict[str, float | None] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """The first start that was said, until it is compared with what happened."""
    first_end: dict[str, float | None] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """The first end that was said."""


class ForecastError(SQLModel, table=True):
    """How far a job's first forecast was wrong."""

    __tablename__ = "forecast_errors"
    __table_args__ = (Index("forecast_errors_by_priority", "priority", "what", "id"),)

    id: int | None = Field(default=None, sa_column=Column(BIG_ID, primary_key=True, autoincrement=True))
    priority: int
    what: str
    """`start` or `end`."""
    ratio: float = Field(sa_type=Double)
    """(Actual time + 60 s) / (forecast + 60 s), both counted from the forecast on."""
    is_inside: bool | None = None
    """Whether it happened within the interval that was said; NULL if none was."""
    at: float = Field(sa_type=Double)
