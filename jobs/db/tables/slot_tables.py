"""Slots and leases, what runners measured on a device, and the lock of the leading scheduler."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Double, Index, bindparam, text
from sqlmodel import Field, SQLModel, col

from jobs.db.states import LIVE_LEASE_STATES, LeaseState, SlotState
from jobs.db.tables.columns import partial_index, state_column, text_column


class Slot(SQLModel, table=True):
    """One accelerator, MIG slice or CPU share on one host, with one Celery worker pinned to it."""

    __tablename__ = "slots"

    id: str = Field(primary_key=True)
    host: str
    device: str
    """`cuda` or `cpu`."""
    device_uuid: str | None = None
    name: str
    memory_bytes: int = Field(default=0, sa_type=BigInteger)
    num_threads: int = 1
    state: SlotState = state_column(SlotState, SlotState.ONLINE)
    reason: str | None = Field(default=None, sa_column=text_column(nullable=True))
    warm_models: list[str] = Field(default_factory=list, sa_type=JSON)
    """Keys of the models that the slot's runner has loaded, the most recent one last."""
    incarnation: str = ""
    """Token of the worker process that owns the slot."""
    packages: list[str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Optional packages that its host has, of `jobs.specs.packages`; null if unknown."""
    labels: list[str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Labels that the operator gave its host; null counts as none."""
    registered_at: float = Field(sa_type=Double)
    heartbeat_at: float = Field(sa_type=Double)


class Lease(SQLModel, table=True):
    """The right of one slot to work on one job for a limited time. Its id is the fencing token."""

    __tablename__ = "leases"
    __table_args__ = (
        partial_index("leases_one_live_per_slot", "slot_id", where="state IN ('granted', 'active')", unique=True),
        Index("leases_by_job", "job_id", "state"),
        Index("leases_by_state", "state", "expires_at"),
        Index(
            "leases_by_yield",
            "ended_at",
            sqlite_where=text("yield_for IS NOT NULL"),
            postgresql_where=text("yield_for IS NOT NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="jobs.id")
    slot_id: str = Field(foreign_key="slots.id")
    state: LeaseState = state_column(LeaseState)
    gang_id: str | None = None
    rank: int = 0
    """Rank of the lease in its gang; rank 0 leads."""
    attempt: int = 1
    """Attempt number, from 1. For inference: number of the grant. All leases of a gang have the same."""
    incarnation: str | None = None
    """Token of the worker process that activated the lease."""
    yield_asked: bool = False
    """Whether the holder must give the lease back at the next chunk boundary."""
    yield_for: str | None = None
    """The job for which it was last asked to yield. Its slot is kept for that job."""
    shutdown_asked: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    """For the leader of a gang: whether a member's worker is shutting down, so that the training must stop soon, with a
    checkpoint."""
    rings: int = 0
    granted_at: float = Field(sa_type=Double)
    rung_at: float = Field(sa_type=Double)
    activated_at: float | None = Field(default=None, sa_type=Double)
    held_at: float | None = Field(default=None, sa_type=Double)
    """For a member of a gang: when its device became free for the leader's processes."""
    expires_at: float = Field(sa_type=Double)
    ended_at: float | None = Field(default=None, sa_type=Double)
    end_reason: str | None = Field(default=None, sa_column=text_column(nullable=True))
    activity: str | None = Field(default=None, sa_column=text_column(nullable=True))
    """The runner's activity at the last heartbeat, in words."""
    activity_at: float | None = Field(default=None, sa_type=Double)
    """Time at which the runner began that activity."""
    stage_times: dict[str, float] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Where the time of an inference lease has gone, as releases before `lease_counts` recorded it."""


IS_LIVE = col(Lease.state).in_(bindparam("live_states", LIVE_LEASE_STATES, expanding=True, literal_execute=True))
"""The condition that a lease is live, spelled so that both databases use the index that holds only live leases."""


class SafeBudget(SQLModel, table=True):
    """The largest batch that was measured to fit after an out-of-memory, per model, dtype and device."""

    __tablename__ = "safe_budgets"

    model_key: str = Field(primary_key=True)
    device_name: str = Field(primary_key=True)
    max_tokens: int
    recorded_at: float = Field(sa_type=Double)


class PaddingVerdict(SQLModel, table=True):
    """Which rows of a model may share a batch, as a runner found by a test."""

    __tablename__ = "padding_verdicts"

    task: str = Field(primary_key=True)
    fingerprint: str = Field(primary_key=True)
    """Digest of the model's config and weights, its dtype, its tokenizer's padding and the libraries' versions."""
    device_name: str = Field(primary_key=True)
    padding: str
    """`right`, `left`, `packed`, `equal_lengths` or `one_by_one`."""
    model_key: str
    """Task, model and dtype of the job that ran the test; informational only."""
    recorded_at: float = Field(sa_type=Double)


class LeaderLock(SQLModel, table=True):
    """The lock of the leading scheduler; only this one schedules."""

    __tablename__ = "leader"

    name: str = Field(primary_key=True)
    owner: str
    expires_at: float = Field(sa_type=Double)
