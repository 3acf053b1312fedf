"""Routes of batches in OpenAI's format: create, list, retrieve, cancel. For files see `files.py`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from jobs.config.projects import sees
from jobs.db.tables import ApiKey, Batch, StoredFile
from jobs.errors import Conflict, NotFound, UserError
from jobs.ledger.accounts.uploads import WITHDRAWN_PURPOSE
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import NewBatch
from jobs.queue import WakeReason
from jobs.specs.inference import parse_duration
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find, scope_of
from scheduler.api.bodies.request_body import parse_request, read_document
from scheduler.api.context import AfterId, Context, InContext, PageSize
from scheduler.api.errors import error_responses
from scheduler.api.views.batch_views import BatchView, batch_view
from scheduler.api.views.lists import Page, page, shown_errors
from scheduler.control.admission.row_counts import count_batch_rows
from scheduler.openai.requests import ENDPOINTS

router = APIRouter(
    prefix="/v1/batches", tags=["batches"], dependencies=[Depends(require_key)], responses=error_responses(400)
)
BatchId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,100}$", description="Id of the batch.")]

_MOST_LABELS = 16
_LONGEST_LABEL = 64
_LONGEST_VALUE = 512
_LONGEST_WINDOW_SECONDS = 30 * 86400


Labels = Annotated[
    dict[str, str],
    Field(
        json_schema_extra={
            "maxProperties": _MOST_LABELS,
            "propertyNames": {"maxLength": _LONGEST_LABEL},
            "additionalProperties": {"type": "string", "maxLength": _LONGEST_VALUE},
        }
    ),
]


class OutputExpiry(BaseModel):
    """How long the output files are kept after the batch was created."""

    model_config = ConfigDict(extra="forbid")

    anchor: str = Field(pattern="^created_at$", max_length=20)
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchRequest(BaseModel):
    """The request body that creates a batch."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    endpoint: str = Field(max_length=100, json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: str = Field(
        max_length=20, description="A duration such as `24h` or `90m`, after which the batch expires."
    )
    metadata: Labels | None = Field(default=None, description="Up to 16 pairs of a name and a value.")
    output_expires_after: OutputExpiry | None = None
    retry_of: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,100}$",
        description="Id of an ended batch over the same file. Only its lines without a response are run, and the "
        "output file has the responses of both batches. An extension of OpenAI's API.",
    )


_BODY = {"application/json": {"schema": {"$ref": f"#/components/schemas/{BatchRequest.__name__}"}}}


@router.post(
    "",
    responses=error_responses(404, 408, 409, 413),
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
def create_batch(
    request: Request,
    context: InContext,
    key: Key,
    document: Annotated[dict[str, Any], Depends(read_document)],
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[\x21-\x7e]{1,200}$", description="Repeated requests with the same key create one batch."),
    ] = None,
) -> BatchView:
    """Create a batch from the lines of an uploaded file. Errors in lines are listed in the batch's `errors`.

    A repeated request with the same `Idempotency-Key`, or one that the SDK marks as a retry, returns the first batch.
    """
    new_batch = parse_request(BatchRequest, document, noun="a batch")
    new, wanted = _checked(context, new_batch, key)
    is_retry = request.headers.get("x-stainless-retry-count", "0") != "0"
    batch = batches.create(
        context.database,
        new,
        project=key.project,
        idempotency_key=idempotency_key,
        is_retry=is_retry,
        wanted=wanted,
    )
    context.doorbell.wake(WakeReason.SUBMISSION)
    return _shown(context, batch)


@router.get("", responses=error_responses(404))
def list_batches(context: InContext, key: Key, after: AfterId = None, limit: PageSize = 20) -> Page[BatchView]:
    """Batches of the key's project, newest first, with the first ten `errors` of each."""
    with context.database.read() as session:
        if after is not None:
            find(session, Batch, after, key)
        found, has_more = batches.list_batches(session, project=scope_of(key), after=after, limit=limit)
        errors = shown_errors(session, found)
        views = [
            batch_view(batch, batches.counts(session, batch), first)
            for batch, first in zip(found, errors, strict=False)
        ]
    return page(views, has_more=has_more or len(views) < len(found))


@router.get("/{batch_id}", responses=error_responses(404))
def get_batch(context: InContext, key: Key, batch_id: BatchId) -> BatchView:
    """One batch."""
    with context.database.read() as session:
        return _shown(context, find(session, Batch, batch_id, key))


@router.post("/{batch_id}/cancel", responses=error_responses(404, 409))
def cancel_batch(context: InContext, key: Key, batch_id: BatchId) -> BatchView:
    """Cancel a batch. Finished lines will be in the output file. Returns 409 if the batch has already ended."""
    with context.database.read() as session:
        find(session, Batch, batch_id, key)
    batch = batches.cancel(context.database, batch_id)
    context.doorbell.wake()
    return _shown(context, batch)


def _checked(context: Context, request: BatchRequest, key: ApiKey) -> tuple[NewBatch, RowsWanted | None]:
    """Validate what can be checked without reading the lines, and compute the queue space that the batch needs."""
    if request.endpoint not in ENDPOINTS:
        raise UserError(f"endpoint: must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    _check_labels(request.metadata or {})
    with context.database.read() as session:
        file = session.get(StoredFile, request.input_file_id)
        if file is None or file.purpose == WITHDRAWN_PURPOSE or not sees(key.project, file.project):
            raise NotFound(f"input_file_id: there is no file '{request.input_file_id}'", param="input_file_id")
        if file.purpose != "batch":
            raise UserError(
                f"input_file_id: the file must have the purpose 'batch', not '{file.purpose}'", param="input_file_id"
            )
        retried = None if request.retry_of is None else find(session, Batch, request.retry_of, key)
    if retried is not None:
        _check_retried(retried, request)
    new = NewBatch(
        endpoint=request.endpoint,
        input_file_id=request.input_file_id,
        completion_window=request.completion_window,
        window_seconds=_window_seconds(request.completion_window),
        digest=hashlib.sha256(orjson.dumps(request.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest(),
        labels=request.metadata,
        output_seconds=None if request.output_expires_after is None else request.output_expires_after.seconds,
        retry_of=request.retry_of,
    )
    wanted = count_batch_rows(file, retried, project=key.project, rules=context.settings, store=context.store)
    return new, wanted


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > _MOST_LABELS:
        raise UserError(f"metadata: must have at most {_MOST_LABELS} pairs, not {len(labels)}", param="metadata")
    for name, value in labels.items():
        if len(name) > _LONGEST_LABEL or len(value) > _LONGEST_VALUE:
            message = f"a key must have at most {_LONGEST_LABEL} characters, and a value at most {_LONGEST_VALUE}"
            raise UserError(f"metadata: {message}", param="metadata")


def _check_retried(retried: Batch, request: BatchRequest) -> None:
    if not retried.state.is_terminal:
        raise Conflict(f"retry_of: batch {retried.id} has not ended; its state is {retried.state}", param="retry_of")
    if (retried.input_file_id, retried.endpoint) != (request.input_file_id, request.endpoint):
        message = f"batch {retried.id} uses file {retried.input_file_id} and endpoint {retried.endpoint}"
        raise UserError(f"retry_of: {message}; its retry must use the same", param="retry_of")


def _window_seconds(window: str) -> int:
    try:
        seconds = parse_duration(window)
    except ValueError as error:
        raise UserError(f"completion_window: {error}", param="completion_window") from error
    if not isinstance(seconds, int) or not 0 < seconds <= _LONGEST_WINDOW_SECONDS:
        raise UserError("completion_window: must be more than 0s and at most 30d", param="completion_window")
    return seconds


def _shown(context: Context, batch: Batch) -> BatchView:
    with context.database.read() as session:
        return batch_view(batch, batches.counts(session, batch), batch.errors)
