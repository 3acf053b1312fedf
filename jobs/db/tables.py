"""The SQLModel tables. Only functions in `jobs.ledger` change states. All times are Unix seconds."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Double, Enum, Index, Integer, LargeBinary, Text, text
from sqlmodel import Field, SQLModel

from jobs.db.states import AttemptEnd, BatchState, ChunkState, DeliveryState, JobState, LeaseState, SlotState

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates only keys of type INTEGER


def _state(states: type[StrEnum], default: StrEnum | None = None) -> Any:
    values = Enum(states, native_enum=False, length=20, create_constraint=False, values_callable=list)
    column: Any = Column(values, nullable=False)
    return Field(sa_column=column) if default is None else Field(default=default, sa_column=column)


def _state_or_none(states: type[StrEnum]) -> Any:
    values = Enum(states, native_enum=False, length=20, create_constraint=False, values_callable=list)
    return Field(default=None, sa_column=Column(values, nullable=True))


def _text(nullable: bool = False) -> Any:
    return Column(Text, nullable=nullable)


class Job(SQLModel, table=True):
    """A job that a user submitted."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_state", "state", "priority", "created_at"),
        Index("jobs_by_batch", "batch_id"),
        Index("jobs_by_retried", "retry_of"),
        Index("jobs_by_model", "project", "model_key"),
    )

    id: str = Field(primary_key=True)
    kind: str
    name: str | None = None
    state: JobState = _state(JobState)
    spec: dict[str, Any] = Field(sa_type=JSON)
    priority: int = 1
    """Rank of the job's priority; 0 is served first."""
    max_slots: int | None = None
    """Most slots that the job may hold. For a training job: the number of slots that it needs at once."""
    model_key: str = ""
    """Task, model and dtype. Slots that have this model loaded are preferred."""
    num_rows: int = Field(default=0, sa_type=BigInteger)
    """Number of input rows; for a training job, its total number of steps, once that is known."""
    num_done: int = Field(default=0, sa_type=BigInteger)
    """Number of rows with a recorded result, row errors included; for a training job, completed steps."""
    num_failed: int = Field(default=0, sa_type=BigInteger)
    """Number of rows of `num_done` whose result is a row error."""
    num_tokens: int = Field(default=0, sa_type=BigInteger)
    crashes: int = 0
    """Number of runner deaths outside any chunk since a chunk was last recorded."""
    attempt: int = 1
    """Number of the latest grant, from 1; for a training, number of its latest attempt."""
    plan_token: str | None = None
    """Token of the planner whose chunks are being written. A planner that finds another's token here stops."""
    retry_of: str | None = None
    batch_id: str | None = None
    """The batch whose lines, or a part of them, this job computes."""
    waits_for: str | None = None
    """The training job whose model this job uses. This job is planned once that one has completed."""
    pins: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """Files that the job computes with, as they were at its submission: `jobs.access.pins.Pins`. NULL in a job that an
    older release accepted and that is not planned yet."""
    max_row_errors: str | None = None
    """The spec's limit of row errors, if it sets one: a number of rows, or a share such as `5%`."""
    num_first: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Number of recorded rows among the job's first rows; see `jobs.data.row_errors`."""
    is_mixed: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    """Whether the job's first rows did not all fail with the same error."""
    row_error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """The lowest row that failed so far, and why: the fields of `jobs.data.row_errors.FailedRow`."""
    project: str = "default"
    idempotency_key: str | None = Field(default=None, unique=True)
    created_at: float = Field(sa_type=Double)
    started_at: float | None = Field(default=None, sa_type=Double)
    ended_at: float | None = Field(default=None, sa_type=Double)
    deadline_at: float | None = Field(default=None, sa_type=Double)
    not_before: float = Field(default=0.0, sa_type=Double)
    """No lease is granted before this time (backoff)."""
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_column=_text(nullable=True))


class Chunk(SQLModel, table=True):
    """A contiguous range of input rows: the unit of claim, commit and retry."""

    __tablename__ = "chunks"
    __table_args__ = (
        Index("chunks_by_state", "job_id", "state", "start_row"),
        Index("chunks_by_lease", "lease_id"),
    )

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    start_row: int = Field(primary_key=True, sa_type=BigInteger)
    stop_row: int = Field(sa_type=BigInteger)
    locator: dict[str, Any] = Field(sa_type=JSON)
    """Where to start reading the input: file, byte offset or row group, and the number of the row at that place."""
    state: ChunkState = _state(ChunkState, ChunkState.PENDING)
    lease_id: str | None = None
    """The lease that owns the chunk while it is `leased`, or that recorded it once it is `done` or `failed`."""
    attempt: int = 1
    crashes: int = 0
    """Number of runner deaths while this chunk was being computed."""
    errors: int = 0
    """Number of tries that ended in a machine error."""
    not_before: float = Field(default=0.0, sa_type=Double)
    error: str | None = Field(default=None, sa_column=_text(nullable=True))
    part: str | None = None
    """Store key of the file part with this chunk's results, for file sinks."""


class ResultRecord(SQLModel, table=True):
    """One result in the database sink: JSON text or a float32 vector, or an error."""

    __tablename__ = "results"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    row_index: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    key: str | None = Field(default=None, sa_column=_text(nullable=True))
    output: str | None = Field(default=None, sa_column=_text(nullable=True))
    """JSON text. Beside a vector: the shape `[k, dimensions]` of several vectors of one row."""
    vector: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    """Little-endian float32 values."""
    error: str | None = Field(default=None, sa_column=_text(nullable=True))
    """JSON text of a row error."""
    num_tokens: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Number of tokens of this row that the model processed, without padding."""


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
    state: SlotState = _state(SlotState, SlotState.ONLINE)
    reason: str | None = Field(default=None, sa_column=_text(nullable=True))
    warm_models: list[str] = Field(default_factory=list, sa_type=JSON)
    """Keys of the models that the slot's runner has loaded, the most recent one last."""
    incarnation: str = ""
    """Token of the worker process that owns the slot."""
    registered_at: float = Field(sa_type=Double)
    heartbeat_at: float = Field(sa_type=Double)


class Lease(SQLModel, table=True):
    """The right of one slot to work on one job for a limited time. Its id is the fencing token."""

    __tablename__ = "leases"
    __table_args__ = (
        Index(
            "leases_one_live_per_slot",
            "slot_id",
            unique=True,
            sqlite_where=text("state IN ('granted', 'active')"),
            postgresql_where=text("state IN ('granted', 'active')"),
        ),
        Index("leases_by_job", "job_id", "state"),
        Index("leases_by_state", "state", "expires_at"),
    )

    id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="jobs.id")
    slot_id: str = Field(foreign_key="slots.id")
    state: LeaseState = _state(LeaseState)
    gang_id: str | None = None
    rank: int = 0
    """Rank of the lease in its gang; rank 0 leads."""
    attempt: int = 1
    """Attempt number, from 1. For inference: number of the grant. All leases of a gang have the same."""
    incarnation: str | None = None
    """Token of the worker process that activated the lease."""
    yield_asked: bool = False
    """Whether the holder must give the lease back at the next chunk boundary."""
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
    end_reason: str | None = Field(default=None, sa_column=_text(nullable=True))
    activity: str | None = Field(default=None, sa_column=_text(nullable=True))
    """The runner's activity at the last heartbeat, in words."""
    activity_at: float | None = Field(default=None, sa_type=Double)
    """When the runner began that activity."""


class Event(SQLModel, table=True):
    """One append-only line of a job's history, written in the transaction of the change that it reports."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_job", "job_id", "id"),)

    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    job_id: str
    at: float = Field(sa_type=Double)
    name: str
    """`job.queued`, `lease.granted`, `chunk.split`, ..."""
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)


class LogLine(SQLModel, table=True):
    """One line that a job's runner logged."""

    __tablename__ = "log_lines"
    __table_args__ = (Index("log_lines_by_job", "job_id", "id"),)

    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    job_id: str
    lease_id: str
    slot_id: str
    attempt: int
    at: float = Field(sa_type=Double)
    line: str = Field(sa_column=_text())


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
    num_halvings: int = 0
    """Number of times that the micro-batch was halved after out-of-memory."""
    end: AttemptEnd | None = _state_or_none(AttemptEnd)
    reason: str | None = Field(default=None, sa_column=_text(nullable=True))
    """Why the attempt ended, in words."""


class Metric(SQLModel, table=True):
    """A metric of a training job at a step. A step that is computed again replaces it."""

    __tablename__ = "metrics"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    step: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    name: str = Field(primary_key=True)
    """`loss`, `learning_rate`, `eval_loss`, ..."""
    value: float | None = Field(default=None, sa_type=Double)
    """None if the value was not a finite number."""
    attempt: int


class Checkpoint(SQLModel, table=True):
    """Files in the store from which a training job can resume at a step."""

    __tablename__ = "checkpoints"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    step: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    attempt: int
    prefix: str
    """Prefix of the keys of the checkpoint's files."""
    files: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    """Each `{name, num_bytes, sha256}`."""
    metric: float | None = Field(default=None, sa_type=Double)
    """Value of the metric `checkpoint.best`, if the model was evaluated at this step."""
    created_at: float = Field(sa_type=Double)


class StoredFile(SQLModel, table=True):
    """A file that a user uploaded."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_age", "created_at", "id"),)

    id: str = Field(primary_key=True)
    filename: str = Field(sa_column=_text())
    purpose: str
    key: str
    num_bytes: int = Field(sa_type=BigInteger)
    sha256: str
    project: str = "default"
    created_at: float = Field(sa_type=Double)
    expires_at: float | None = Field(default=None, sa_type=Double)


class Batch(SQLModel, table=True):
    """A batch of OpenAI's API: the lines of one uploaded file, computed by one job for each model."""

    __tablename__ = "batches"
    __table_args__ = (Index("batches_by_age", "created_at", "id"), Index("batches_by_state", "state"))

    id: str = Field(primary_key=True)
    project: str = "default"
    state: BatchState = _state(BatchState)
    endpoint: str
    """`/v1/embeddings`, ..."""
    input_file_id: str
    completion_window: str
    """The window as the client wrote it; `expires_at` follows from it."""
    labels: dict[str, str] | None = Field(default=None, sa_type=JSON)
    """The field `metadata` of OpenAI's API."""
    output_seconds: int | None = None
    """Lifetime of the output files in seconds; None for the lifetime of an upload."""
    retry_of: str | None = None
    idempotency_key: str | None = Field(default=None, unique=True)
    digest: str
    """Digest of the request, which identifies an SDK's retry of it."""
    errors: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON)
    """Each `{code, message, line, param}`."""
    model: str | None = None
    """Model name, if all lines use the same one."""
    num_lines: int = Field(default=0, sa_type=BigInteger)
    num_carried: int = Field(default=0, sa_type=BigInteger)
    """Number of lines whose answers were taken over from the batch that this one retries."""
    carried_key: str | None = None
    """Key of those answers in the store."""
    num_completed: int | None = Field(default=None, sa_type=BigInteger)
    """Number of lines with an answer. None until the batch has ended; until then its jobs are counted."""
    num_failed: int | None = Field(default=None, sa_type=BigInteger)
    input_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: float = Field(sa_type=Double)
    expires_at: float = Field(sa_type=Double)
    in_progress_at: float | None = Field(default=None, sa_type=Double)
    finalizing_at: float | None = Field(default=None, sa_type=Double)
    completed_at: float | None = Field(default=None, sa_type=Double)
    failed_at: float | None = Field(default=None, sa_type=Double)
    expired_at: float | None = Field(default=None, sa_type=Double)
    cancelling_at: float | None = Field(default=None, sa_type=Double)
    cancelled_at: float | None = Field(default=None, sa_type=Double)


class Webhook(SQLModel, table=True):
    """A URL that is notified of events in a project."""

    __tablename__ = "webhooks"

    id: str = Field(primary_key=True)
    project: str = "default"
    url: str = Field(sa_column=_text())
    secret: str
    """`whsec_<base64>`. It is stored in plain text because each delivery is signed with it."""
    events: list[str] = Field(default_factory=list, sa_type=JSON)
    """Event types that the webhook receives, such as `batch.completed`; empty for all types."""
    created_at: float = Field(sa_type=Double)


class WebhookDelivery(SQLModel, table=True):
    """The delivery of one event to one webhook, and the log of its tries."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("webhook_deliveries_by_state", "state", "not_before"),
        Index("webhook_deliveries_by_webhook", "webhook_id", "created_at", "id"),
    )

    id: str = Field(primary_key=True)
    """The `webhook-id` header of every try."""
    webhook_id: str
    type: str
    body: str = Field(sa_column=_text())
    """The JSON text that is signed and sent."""
    state: DeliveryState = _state(DeliveryState, DeliveryState.PENDING)
    attempts: int = 0
    not_before: float = Field(default=0.0, sa_type=Double)
    status_code: int | None = None
    """HTTP status of the last response."""
    error: str | None = Field(default=None, sa_column=_text(nullable=True))
    """Why the last try failed."""
    created_at: float = Field(sa_type=Double)
    ended_at: float | None = Field(default=None, sa_type=Double)


class ApiKey(SQLModel, table=True):
    """A bearer key, of which only the hash is kept."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    name: str
    project: str = "default"
    sha256: str = Field(unique=True)
    created_at: float = Field(sa_type=Double)
    revoked_at: float | None = Field(default=None, sa_type=Double)


class LeaderLock(SQLModel, table=True):
    """The lock of the leading scheduler; only this one schedules."""

    __tablename__ = "leader"

    name: str = Field(primary_key=True)
    owner: str
    expires_at: float = Field(sa_type=Double)


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
    """`right`, `left`, `equal_lengths` or `one_by_one`."""
    model_key: str
    """Task, model and dtype of the job that ran the test; informational only."""
    recorded_at: float = Field(sa_type=Double)


class Notice(SQLModel, table=True):
    """A message to the user about how a job runs, although nothing is wrong."""

    __tablename__ = "notices"

    job_id: str = Field(primary_key=True, foreign_key="jobs.id")
    code: str = Field(primary_key=True)
    message: str = Field(sa_column=_text())
    at: float = Field(sa_type=Double)
