"""A batch as JSON in OpenAI's format: all keys are always present, null where they do not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.db.states import BatchState
from jobs.db.tables import Batch
from jobs.ledger.groups.batches import BatchCounts


class RequestCounts(BaseModel):
    """Counts of a batch's lines."""

    total: int
    completed: int = Field(description="Lines that have a response so far.")
    failed: int = Field(description="Lines that have an error so far.")


class BatchError(BaseModel):
    """An error in one line of the input file, or in the whole file."""

    code: str | None
    line: int | None
    message: str | None
    param: str | None


class BatchErrors(BaseModel):
    """All errors of the input, at most a thousand; at most ten in lists."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class InputTokens(BaseModel):
    """Breakdown of the input tokens."""

    cached_tokens: int = 0


class OutputTokens(BaseModel):
    """Breakdown of the output tokens."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of all responses together, known once the batch has ended."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class BatchView(BaseModel):
    """A batch. Times are whole Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = Field(description="Model name, if all lines use the same one.")
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchState
    output_file_id: str | None = Field(
        description="Can be read from `in_progress` on. It grows until the batch has ended."
    )
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None
    retry_of: str | None = Field(description="Id of the batch that this batch retries. An extension of OpenAI's API.")


def batch_view(batch: Batch, counts: BatchCounts, errors: Sequence[Mapping[str, Any]] | None) -> BatchView:
    """A batch as JSON, with the given errors."""
    return BatchView(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=None if errors is None else BatchErrors(data=[BatchError(**error) for error in errors]),
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.state,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at),
        in_progress_at=_whole(batch.in_progress_at),
        expires_at=int(batch.expires_at),
        finalizing_at=_whole(batch.finalizing_at),
        completed_at=_whole(batch.completed_at),
        failed_at=_whole(batch.failed_at),
        expired_at=_whole(batch.expired_at),
        cancelling_at=_whole(batch.cancelling_at),
        cancelled_at=_whole(batch.cancelled_at),
        request_counts=RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        usage=_usage(batch),
        metadata=batch.labels,
        retry_of=batch.retry_of,
    )


def _usage(batch: Batch) -> BatchUsage | None:
    if not batch.state.is_terminal or batch.in_progress_at is None:
        return None
    return BatchUsage(
        input_tokens=batch.input_tokens,
        input_tokens_details=InputTokens(),
        output_tokens=batch.output_tokens,
        output_tokens_details=OutputTokens(),
        total_tokens=batch.input_tokens + batch.output_tokens,
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
