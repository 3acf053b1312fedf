"""Jobs, their chunks and results, and what they tell the user: artifacts, events, log lines and notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    LargeBinary,
    case,
    cast,
    func,
    inspect,
    literal,
    select,
    text,
)
from sqlalchemy.orm import column_property
from sqlmodel import Field, SQLModel, col

from jobs.db.states import ChunkState, JobState
from jobs.db.tables.columns import BIG_ID, partial_index, state_column, text_column
from jobs.specs.array_spec import AHEAD

_IS_NO_CHILD = "parent_id IS NULL"  # lists of jobs leave out the children of arrays


class Job(SQLModel, table=True):
    """A job that a user submitted."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_state", "state", "priority", "ready_at", "id"),
        partial_index("jobs_by_age", "created_at", "id", where=_IS_NO_CHILD),
        partial_index("jobs_by_state_and_age", "state", "created_at", "id", where=_IS_NO_CHILD),
        partial_index("jobs_by_project", "project", "created_at", "id", where=_IS_NO_CHILD),
        partial_index("jobs_by_project_and_state", "project", "state", "created_at", "id", where=_IS_NO_CHILD),
        partial_index("jobs_waiting", "project", "kind", "priority", "ready_at", "id", where="state = 'queued'"),
        partial_index("jobs_by_deadline", "deadline_at", where="deadline_at IS NOT NULL AND ended_at IS NULL"),
        partial_index("jobs_by_end", "ended_at", where="ended_at IS NOT NULL"),
        partial_index(
            "jobs_uncounted",
            "project",
            "ready_at",
            where="kind = 'inference' AND state = 'validating' AND num_rows = 0",
        ),
        partial_index("jobs_at_work", "project", where="state IN ('running', 'cancelling')"),
        Index("jobs_by_batch", "batch_id"),
        Index("jobs_by_retried", "retry_of"),
        Index("jobs_by_model", "project", "model_key"),
        Index("jobs_by_parent", "parent_id", "child_index", unique=True),
        Index("jobs_by_family", "parent_id", "state", "child_index"),
        Index("jobs_by_parent_and_age", "parent_id", "created_at", "id"),
    )

    id: str = Field(primary_key=True)
    kind: str
    name: str | None = None
    state: JobState = state_column(JobState)
    spec: dict[str, Any] = Field(sa_type=JSON)
    priority: int = 1
    """Rank of the job's priority; 0 is served first."""
    max_slots: int | None = None
    """Maximum number of slots that the job may hold. For a training job: the number of slots that it needs at once. For
    an array: maximum number of children that are ready at once."""
    model_key: str = ""
    """Task, model and dtype. Slots that have this model loaded are preferred."""
    workload: dict[str, str] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """What decides its speed, as in `jobs.ledger.timing.workloads.Workload`. NULL in a job of an older release."""
    needs: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """What the job's slots must have, `jobs.specs.needs.Needs.stored()`; null until the job is planned."""
    num_rows: int = Field(default=0, sa_type=BigInteger)
    """Number of input rows; for a training job, its total number of steps, once that is known; for an array, of its
    children."""
    own_done: int = Field(default=0, sa_column=Column("num_done", BigInteger, nullable=False, default=0))
    """The part of `num_done` that is not in `lease_counts`: completed steps of a training, ended children of an
    array, and what releases before that table recorded. Likewise the next two."""
    own_failed: int = Field(default=0, sa_column=Column("num_failed", BigInteger, nullable=False, default=0))
    own_tokens: int = Field(default=0, sa_column=Column("num_tokens", BigInteger, nullable=False, default=0))
    if TYPE_CHECKING:  # sums over `lease_counts`, see `_add_sums`
        num_done: int = 0
        """Number of rows with a recorded result, row errors included; for a training job, completed steps; for an
        array, children that have ended."""
        num_failed: int = 0
        """Number of rows of `num_done` whose result is a row error; for an array, children that did not complete."""
        num_tokens: int = 0
        """Number of tokens of these rows that the model processed, without padding."""
    crashes: int = 0
    """Number of runner deaths outside any chunk since a chunk was last recorded."""
    attempt: int = 1
    """Number of the latest grant, from 1; for a training, number of its latest attempt."""
    plan_token: str | None = None
    """Token of the planner whose chunks are being written. A planner that finds another's token here stops."""
    retry_of: str | None = None
    parent_id: str | None = None
    """The array of which this job is a child."""
    child_index: int | None = None
    """Number of the child in its array, from 0."""
    num_children: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """For an array: number of children that were made."""
    num_ahead: int = Field(default=AHEAD, sa_column_kwargs={"server_default": str(AHEAD)})
    """For an array: number of children that are made before there is a place for them."""
    trial_values: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """For a trial of a sweep: its values. NULL in a trial of an older release, which drew them at random."""
    pruned_step: int | None = Field(default=None, sa_type=BigInteger)
    """For a trial that its sweep ended early: the step at which this was decided."""
    batch_id: str | None = None
    """The batch whose lines, or a part of them, this job computes."""
    pins: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """Files that the job computes with, as they were at its submission: `jobs.access.pins.Pins`. NULL in a job that an
    older release accepted and that is not planned yet."""
    max_row_errors: str | None = None
    """The spec's limit of row errors, if it sets one: a number of rows, or a share such as `5%`."""
    num_first: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Number of recorded rows among the job's first rows; see `jobs.data.row_errors`. This and the next two are what
    releases before `lease_counts` recorded."""
    is_mixed: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    """Whether the job's first rows did not all fail with the same error."""
    row_error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """The lowest row that failed so far, and why: the fields of `jobs.data.row_errors.FailedRow`."""
    project: str = "default"
    idempotency_key: str | None = Field(default=None, unique=True)
    created_at: float = Field(sa_type=Double)
    ready_at: float | None = Field(default=None, sa_type=Double)
    """When the job may be planned, and its wait for slots begins. NULL while it waits for other jobs."""
    started_at: float | None = Field(default=None, sa_type=Double)
    ended_at: float | None = Field(default=None, sa_type=Double)
    deadline_at: float | None = Field(default=None, sa_type=Double)
    """When the job ends as `expired`: its time limit."""
    promise_at: float | None = Field(default=None, sa_type=Double)
    """When the job was promised to be done. Other than at `deadline_at`, it does not end then."""
    promise_seconds: float | None = Field(default=None, sa_type=Double)
    """With a promise: an upper bound of the slot-seconds of the whole job, as estimated when it was admitted."""
    not_before: float = Field(default=0.0, sa_type=Double)
    """No lease is granted before this time (backoff)."""
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_column=text_column(nullable=True))


class Dependency(SQLModel, table=True):
    """A job that waits for another one to end. Deleted when that one has ended."""

    __tablename__ = "dependencies"
    __table_args__ = (Index("dependencies_by_parent", "parent_id"),)

    job_id: str = Field(primary_key=True)
    parent_id: str = Field(primary_key=True)
    """The job that must end first."""
    condition: str
    """`ok`: that job must complete, or this one is cancelled. `any`: it must only end."""


class JobTotal(SQLModel, table=True):
    """A part of the totals of jobs by project, kind and state. Triggers insert parts; their sum is the total.

    They are inserted and not updated, so that no two transactions wait for each other here.
    `jobs.ledger.accounts.totals` reads the table and merges its rows.
    """

    __tablename__ = "job_totals"
    __table_args__ = (Index("job_totals_by_project", "project"),)

    id: int | None = Field(default=None, sa_column=Column(BIG_ID, primary_key=True, autoincrement=True))
    project: str
    kind: str
    state: JobState = state_column(JobState)
    num_jobs: int = Field(sa_type=BigInteger)
    """Number of jobs that came into this state, less those that left it."""
    num_rows: int = Field(sa_type=BigInteger)
    """The sum of `num_rows` of these jobs, and below of their other numbers. Those of running and cancelling jobs count
    as 0, since they change with each chunk."""
    num_done: int = Field(sa_type=BigInteger)
    num_failed: int = Field(sa_type=BigInteger)
    num_tokens: int = Field(sa_type=BigInteger)


class LeaseCounts(SQLModel, table=True):
    """What a lease has recorded; a job's counters are the sums over its leases.

    Commits change only this row, which no other lease changes. So the commits of a job's leases do not wait for each
    other, nor does a lease's heartbeat for its commit.
    """

    __tablename__ = "lease_counts"
    __table_args__ = (Index("lease_counts_by_job", "job_id"),)

    lease_id: str = Field(primary_key=True)
    job_id: str
    num_done: int = Field(default=0, sa_type=BigInteger)
    """Number of recorded rows, row errors included."""
    num_failed: int = Field(default=0, sa_type=BigInteger)
    num_tokens: int = Field(default=0, sa_type=BigInteger)
    num_first: int = Field(default=0, sa_type=BigInteger)
    """This and the next two are the fields of `jobs.data.row_errors.RowErrors` for the lease's rows."""
    is_mixed: bool = False
    row_error: dict[str, Any] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    stage_times: dict[str, float] | None = Field(default=None, sa_type=JSON(none_as_null=True))
    """Where the time of the lease has gone at its last commit, as in `jobs.ledger.timing.stage_times.StageTimes`."""


def _add_sums() -> None:
    """Add the counters that are sums to `Job`, for objects and for queries. A job that never started has no sums."""
    for name in ("done", "failed", "tokens"):
        counted = getattr(LeaseCounts, f"num_{name}")
        summed = select(cast(func.coalesce(func.sum(counted), 0), BigInteger)).where(
            col(LeaseCounts.job_id) == col(Job.id)
        )
        recorded = case((col(Job.started_at).is_not(None), summed.correlate(Job).scalar_subquery()), else_=0)
        total = column_property(getattr(Job, f"own_{name}") + recorded, expire_on_flush=False)
        inspect(Job).add_property(f"num_{name}", total)


_add_sums()


class Chunk(SQLModel, table=True):
    """A contiguous range of input rows: the unit of claim, commit and retry."""

    __tablename__ = "chunks"
    __table_args__ = (
        Index("chunks_by_state", "job_id", "state", "start_row"),
        partial_index("chunks_by_lease", "lease_id", where="state = 'leased'"),
    )

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    start_row: int = Field(primary_key=True, sa_type=BigInteger)
    stop_row: int = Field(sa_type=BigInteger)
    locator: dict[str, Any] = Field(sa_type=JSON)
    """Where to start reading the input: file, byte offset or row group, and the number of the row at that place."""
    state: ChunkState = state_column(ChunkState, ChunkState.PENDING)
    lease_id: str | None = None
    """The lease that owns the chunk while it is `leased`, or that recorded it once it is `done` or `failed`."""
    attempt: int = 1
    crashes: int = 0
    """Number of runner deaths while this chunk was being computed."""
    errors: int = 0
    """Number of tries that ended in a machine error."""
    not_before: float = Field(default=0.0, sa_type=Double)
    error: str | None = Field(default=None, sa_column=text_column(nullable=True))
    part: str | None = None
    """Store key of the file part with this chunk's results, for file sinks."""


IS_LEASED = col(Chunk.state) == literal(ChunkState.LEASED, literal_execute=True)
"""The condition that a chunk is leased, spelled so that both databases find such chunks by their lease's id: the index
holds only leased chunks, and SQLite uses it only for a constant."""


class ResultRecord(SQLModel, table=True):
    """One result in the database sink: JSON text or a float32 vector, or an error."""

    __tablename__ = "results"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    row_index: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    key: str | None = Field(default=None, sa_column=text_column(nullable=True))
    output: str | None = Field(default=None, sa_column=text_column(nullable=True))
    """JSON text. Beside a vector: the shape `[k, dimensions]` of several vectors of one row."""
    vector: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    """Little-endian float32 values."""
    error: str | None = Field(default=None, sa_column=text_column(nullable=True))
    """JSON text of a row error."""
    num_tokens: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Number of tokens of this row that the model processed, without padding."""


class Artifact(SQLModel, table=True):
    """A named file that a job produced."""

    __tablename__ = "artifacts"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    name: str = Field(primary_key=True)
    key: str
    """The artifact's key in the store."""
    num_bytes: int = Field(sa_type=BigInteger)
    sha256: str
    created_at: float = Field(sa_type=Double)


class Event(SQLModel, table=True):
    """One append-only line of a job's history, written in the transaction of the change that it reports."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_job", "job_id", "id"),)

    id: int | None = Field(default=None, sa_column=Column(BIG_ID, primary_key=True, autoincrement=True))
    job_id: str
    at: float = Field(sa_type=Double)
    name: str
    """`job.queued`, `lease.granted`, `chunk.split`, ..."""
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)


class LogLine(SQLModel, table=True):
    """One line that a job's runner logged."""

    __tablename__ = "log_lines"
    __table_args__ = (Index("log_lines_by_job", "job_id", "id"),)

    id: int | None = Field(default=None, sa_column=Column(BIG_ID, primary_key=True, autoincrement=True))
    job_id: str
    lease_id: str
    slot_id: str
    attempt: int
    at: float = Field(sa_type=Double)
    line: str = Field(sa_column=text_column())


class Notice(SQLModel, table=True):
    """A message to the user about how a job runs, although nothing is wrong."""

    __tablename__ = "notices"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    code: str = Field(primary_key=True)
    message: str = Field(sa_column=text_column())
    at: float = Field(sa_type=Double)
