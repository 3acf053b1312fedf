"""What the clients of the API create: uploaded files, batches, webhooks with their deliveries, and keys."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Index
from sqlmodel import Field, SQLModel

from jobs.db.states import BatchState, DeliveryState
from jobs.db.tables.columns import state_column, text_column


class StoredFile(SQLModel, table=True):
    """A file that a user uploaded."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_age", "created_at", "id"),)

    id: str = Field(primary_key=True)
    filename: str = Field(sa_column=text_column())
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
    state: BatchState = state_column(BatchState)
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
    """A list of `{code, message, line, param}`."""
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
    url: str = Field(sa_column=text_column())
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
    body: str = Field(sa_column=text_column())
    """The JSON text that is signed and sent."""
    state: DeliveryState = state_column(DeliveryState, DeliveryState.PENDING)
    attempts: int = 0
    not_before: float = Field(default=0.0, sa_type=Double)
    status_code: int | None = None
    """HTTP status of the last response."""
    error: str | None = Field(default=None, sa_column=text_column(nullable=True))
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
