"""What a training job records: attempts, metrics and checkpoints."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Index
from sqlmodel import Field, SQLModel

from jobs.db.states import AttemptEnd
from jobs.db.tables.columns import optional_state_column, text_column


class Attempt(SQLModel, table=True):
    """One attempt of a training job: the checkpoint that it resumed from, its last step, and why it ended."""

    __tablename__ = "attempts"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    """The `attempt` of its lease."""
    lease_id: str
    slot_id: str
    started_at: float = Field(sa_type=Double)
    ended_at: float | None = Field(default=None, sa_type=Double)
    resumed_step: int = Field(default=0, sa_type=BigInteger)
    """Step of the checkpoint that the attempt resumed from; 0 if it started from the beginning."""
    last_step: int = Field(default=0, sa_type=BigInteger)
    begun_at: float | None = Field(default=None, sa_type=Double)
    """When its processes were ready for their first step."""
    advanced_at: float | None = Field(default=None, sa_type=Double)
    """When `last_step` was reported."""
    num_halvings: int = 0
    """Number of times that the micro-batch was halved after out-of-memory."""
    end: AttemptEnd | None = optional_state_column(AttemptEnd)
    reason: str | None = Field(default=None, sa_column=text_column(nullable=True))
    """Why the attempt ended, in words."""


class Metric(SQLModel, table=True):
    """A metric of a training job at a step. A step that is computed again replaces it."""

    __tablename__ = "metrics"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    step: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    name: str = Field(primary_key=True)
    """`loss`, `learning_rate`, `eval_loss`, ..."""
    value: float | None = Field(default=None, sa_type=Double)
    """The metric's value; None if it was not a finite number."""
    attempt: int


class Rung(SQLModel, table=True):
    """The value with which a trial of a sweep was compared with the others after a number of steps."""

    __tablename__ = "rungs"
    __table_args__ = (Index("rungs_by_job", "job_id", "step"),)

    sweep_id: str = Field(primary_key=True)
    step: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    """The number of steps from which on trials are compared; the same for all of them."""
    job_id: str = Field(primary_key=True)
    """The id of the trial, which is a job."""
    value: float | None = Field(default=None, sa_type=Double)
    """The trial's first value of the sweep's metric from this step on; None if it was not a finite number."""


class Checkpoint(SQLModel, table=True):
    """Files in the store from which a training job can resume at a step."""

    __tablename__ = "checkpoints"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    step: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    attempt: int
    prefix: str
    """Prefix of the keys of the checkpoint's files."""
    files: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    """A list of `{name, num_bytes, sha256}`."""
    metric: float | None = Field(default=None, sa_type=Double)
    """Value of the metric `checkpoint.best`, if the model was evaluated at this step."""
    created_at: float = Field(sa_type=Double)
