"""Routes of uploaded files in OpenAI's format: upload straight into the store, list, retrieve, download, delete."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import ColumnElement
from sqlmodel import Session, col
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from jobs.config.limits import limits_of
from jobs.config.projects import sees
from jobs.config.times import DAY_SECONDS
from jobs.data.drafts import StoredObject
from jobs.data.store_keys import upload_key
from jobs.db.ids import new_id
from jobs.db.tables import ApiKey, StoredFile
from jobs.errors import Conflict, NotFound, TooLarge, UserError
from jobs.ledger.accounts.uploads import PURPOSES, WITHDRAWN_PURPOSE, uploads_in_use
from jobs.ledger.accounts.usage import reserve_bytes, storage_full, uploaded_bytes
from jobs.ledger.groups.batches import ROWS_PURPOSE
from jobs.ledger.records import pages
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import scope_of
from scheduler.api.bodies.growing_files import find_growing, growing_view, stream_growing
from scheduler.api.bodies.multipart import Part, boundary_of, read_field, read_parts
from scheduler.api.bodies.request_body import next_block
from scheduler.api.bodies.stored_object import RANGES, stream_object
from scheduler.api.context import AfterId, Context, FileId, InContext
from scheduler.api.errors import error_responses
from scheduler.api.views.file_views import DeletedFile, FileView, file_view
from scheduler.api.views.lists import Page, bounded_page

logger = logging.getLogger(__name__)

_EXPIRY_SECONDS = re.compile(r"[1-9][0-9]{0,9}")
_HIDDEN = (ROWS_PURPOSE, WITHDRAWN_PURPOSE)  # purposes of files that a user never sees
_BATCH_ENDINGS = ("", ".jsonl")
_FRAME_BYTES = 64 * 2**10  # bytes that the multipart encoding may add around the file

router = APIRouter(
    prefix="/v1/files", tags=["files"], dependencies=[Depends(require_key)], responses=error_responses(400)
)

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileView, responses=error_responses(408, 413), openapi_extra=_FORM)
async def upload_file(request: Request, context: InContext, key: Key) -> FileView:
    """Upload a file. Specs refer to it as `input.path: file:<id>`. Form fields may come before or after the file."""
    declared = request.headers.get("content-length", "")
    num_declared = int(declared) - _FRAME_BYTES if declared.isdigit() else 0  # the file has at least this many bytes
    room = await run_in_threadpool(_find_room, context, key.project, num_declared)
    boundary = boundary_of(request.headers.get("content-type", ""))
    stream = aiter(request.stream())

    def blocks() -> Iterator[bytes]:
        while (block := anyio.from_thread.run(next_block, request, stream)) is not None:
            yield block

    # The store is synchronous; its thread pulls the body block by block, so a slow disk slows the client down.
    async with context.uploads.turn(key.id) as threads:
        return await anyio.to_thread.run_sync(_receive, context, key.project, blocks(), boundary, room, limiter=threads)


@router.get("", responses=error_responses(404))
def list_files(
    context: InContext,
    key: Key,
    after: AfterId = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Maximum number of entries on the page.")] = 20,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(pattern=r"^[a-z_-]{1,50}$", description="Only files of this purpose.")] = None,
) -> Page[FileView]:
    """Uploaded files of the key's project, sorted by time of upload."""
    conditions: list[ColumnElement[bool]] = [col(StoredFile.purpose).not_in(_HIDDEN)]
    if (project := scope_of(key)) is not None:
        conditions.append(col(StoredFile.project) == project)
    if purpose is not None:
        conditions.append(col(StoredFile.purpose) == purpose)
    with context.database.read() as session:
        last = None if after is None else _find(session, after, key)
        files, has_more = pages.page(session, StoredFile, *conditions, last=last, limit=limit, order=order)
    return bounded_page(map(file_view, files), limit, has_more=has_more)


@router.get("/{file_id}", responses=error_responses(404))
def get_file(context: InContext, key: Key, file_id: FileId) -> FileView:
    """One uploaded file."""
    with context.database.read() as session:
        growing = find_growing(session, file_id, key)
        return file_view(_find(session, file_id, key)) if growing is None else growing_view(growing, file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."},
        **RANGES,
        **error_responses(404),
    },
)
def get_file_content(request: Request, context: InContext, key: Key, file_id: FileId) -> Response:
    """The bytes of a file, or a `Range` of them. For the output of a running batch: all lines known so far."""
    with context.database.read() as session:
        growing = find_growing(session, file_id, key)
        if growing is None:
            file = _find(session, file_id, key)
    if growing is not None:
        return stream_growing(context, growing, file_id, key)
    return stream_object(request, context, key, file.key, num_bytes=file.num_bytes, sha256=file.sha256)


@router.delete("/{file_id}", responses=error_responses(404, 409))
def delete_file(context: InContext, key: Key, file_id: FileId) -> DeletedFile:
    """Delete an uploaded file. Returns 409 while a live job reads it."""
    with context.database.read() as session:
        growing = find_growing(session, file_id, key)
        if growing is not None:
            raise Conflict(f"batch {growing.id} still writes file '{file_id}'; cancel the batch or wait for its end")
        file = _find(session, file_id, key)
        reader = uploads_in_use(session).get(file_id)
    if reader is not None:
        raise Conflict(f"{reader} still reads file '{file_id}'; cancel it or wait for its end")
    context.store.delete(file.key)  # first, so that an interrupted deletion can be repeated
    with context.database.write() as session:
        gone = session.get(StoredFile, file_id)
        if gone is not None:
            session.delete(gone)
    return DeletedFile(id=file_id)


@dataclass(frozen=True, slots=True)
class _Room:
    """How large an upload may be, and the error for a larger one."""

    num_bytes: int
    error: UserError


def _find_room(context: Context, project: str, num_declared: int) -> _Room:
    """The space left for an upload, computed before its body is read.

    Args:
        num_declared: Lower bound of the file's size in bytes.

    Raises:
        TooLarge: The file is larger than any upload may be.
        StorageFull: The project's other uploads leave too little space.
    """
    limit, database = context.settings.max_upload_bytes, context.database
    room = _Room(limit, TooLarge(f"the upload is larger than the limit of {limit} bytes", param="file"))
    total = limits_of(project, context.settings.projects).upload_bytes
    if total is not None and total < limit:
        message = f"the upload is larger than the {total} bytes that project '{project}' may store (upload_bytes)"
        room = _Room(total, TooLarge(message, param="file"))
    if num_declared > room.num_bytes:
        raise room.error
    if total is None:
        return room
    with database.read() as session:
        left = total - uploaded_bytes(session, project)
        if left < room.num_bytes:
            room = _Room(left, storage_full(session, project, limit=total))
    if num_declared > room.num_bytes or room.num_bytes <= 0:
        raise room.error
    return room


def _receive(context: Context, project: str, blocks: Iterator[bytes], boundary: bytes, room: _Room) -> FileView:
    """Store an upload and record it; a failure leaves neither."""
    fields: dict[str, str] = {}
    file_id = new_id("file")
    stored: StoredObject | None = None
    filename = ""
    try:
        for part in read_parts(blocks, boundary):
            if part.filename is None:
                fields[part.name] = read_field(part)
                _check_fields(fields)
            elif part.name != "file" or stored is not None:
                raise UserError("an upload must have one file, in the part 'file'", param="file")
            else:
                filename = part.filename
                _check_filename(filename, fields.get("purpose"))
                stored = _store(context, file_id, part, room)
        if stored is None:
            raise UserError("file: is required, with a filename", param="file")
        if "purpose" not in fields:
            raise UserError(f"purpose: is required; must be one of {', '.join(PURPOSES)}", param="purpose")
        _check_filename(filename, fields["purpose"])
        return file_view(_record(context, file_id, filename, fields, stored, project))
    except BaseException:
        if stored is not None:
            context.store.delete(stored.key)
        raise


def _store(context: Context, file_id: str, part: Part, room: _Room) -> StoredObject:
    try:
        return context.store.put(upload_key(file_id), part.content, max_bytes=room.num_bytes)
    except TooLarge as error:
        raise room.error from error


def _record(
    context: Context, file_id: str, filename: str, fields: dict[str, str], stored: StoredObject, project: str
) -> StoredFile:
    longest = context.settings.upload_days * DAY_SECONDS  # the operator's limit wins over a longer request
    seconds = min(longest, float(fields.get("expires_after[seconds]", longest)))
    limit = limits_of(project, context.settings.projects).upload_bytes
    with context.database.write() as session:
        if limit is not None:
            reserve_bytes(session, project, limit=limit, num_bytes=stored.num_bytes)
        now = session.time()
        file = StoredFile(
            id=file_id,
            filename=filename,
            purpose=fields["purpose"],
            key=stored.key,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
            project=project,
            created_at=now,
            expires_at=now + seconds,
        )
        session.add(file)
    return file


def _check_fields(fields: dict[str, str]) -> None:
    """Reject invalid fields as early as possible: before the file's bytes if the client sends the fields first."""
    purpose = fields.get("purpose")
    if purpose is not None and purpose not in PURPOSES:
        raise UserError(f"purpose: must be one of {', '.join(PURPOSES)}", param="purpose")
    anchor = fields.get("expires_after[anchor]", "created_at")
    if anchor != "created_at":
        raise UserError("expires_after.anchor: must be created_at", param="expires_after.anchor")
    seconds = fields.get("expires_after[seconds]", "3600")
    if not _EXPIRY_SECONDS.fullmatch(seconds) or int(seconds) < 3600:
        raise UserError("expires_after.seconds: must be a whole number of at least 3600", param="expires_after.seconds")


def _check_filename(filename: str, purpose: str | None) -> None:
    """Reject other extensions for a batch's input. Names without one pass, since SDKs send such names for bytes."""
    if purpose == "batch" and PurePosixPath(filename).suffix.lower() not in _BATCH_ENDINGS:
        raise UserError("file: the input of a batch must be a .jsonl file", param="file")


def _find(session: Session, file_id: str, key: ApiKey) -> StoredFile:
    file = session.get(StoredFile, file_id)
    if file is None or file.purpose in _HIDDEN or not sees(key.project, file.project):
        raise NotFound(f"there is no file '{file_id}'")
    return file
