"""The output and error files of a batch that is still running: rendered on each read, with the lines known so far."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import or_, select
from sqlmodel import Session, col
from starlette.responses import StreamingResponse

from jobs.config.projects import sees
from jobs.db.states import LIVE_BATCH_STATES
from jobs.db.tables import ApiKey, Batch
from jobs.ledger.groups import batches
from scheduler.api.access.live_key import while_valid
from scheduler.api.context import Context
from scheduler.api.views.file_views import FileView
from scheduler.openai.output_lines import output_lines

_BLOCK_BYTES = 256 * 2**10


def find_growing(session: Session, file_id: str, key: ApiKey) -> Batch | None:
    """The live batch that this file id belongs to, or None if the key sees no such batch."""
    named = or_(col(Batch.output_file_id) == file_id, col(Batch.error_file_id) == file_id)
    batch = session.scalar(select(Batch).where(col(Batch.state).in_(LIVE_BATCH_STATES), named))
    return batch if batch is not None and sees(key.project, batch.project) else None


def growing_view(batch: Batch, file_id: str) -> FileView:
    """The file as JSON: its status is `uploaded` and its size unknown until the batch has ended."""
    kind = "output" if file_id == batch.output_file_id else "error"
    return FileView(
        id=file_id,
        bytes=0,
        created_at=int(batch.in_progress_at or batch.created_at),
        filename=f"{batch.id}_{kind}.jsonl",
        purpose=batches.OUTPUT_PURPOSE,
        status="uploaded",
        expires_at=None,
    )


def stream_growing(context: Context, batch: Batch, file_id: str, key: ApiKey) -> StreamingResponse:
    """The lines known so far, in input order; rows that are not done yet have no line."""
    with context.database.read() as session:
        jobs = batches.jobs_of(session, batch.id)
    wanted = file_id == batch.output_file_id
    known = output_lines(context.database, context.store, batch, jobs, unfinished=False)

    def blocks() -> Iterator[bytes]:
        block = bytearray()
        for line in known:
            if line.succeeded == wanted:
                block += line.text
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
        yield bytes(block)

    return StreamingResponse(while_valid(blocks(), context, key), media_type="application/octet-stream")
