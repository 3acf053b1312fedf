"""Results route: encoded in the requested format while being read, never the whole in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, cast

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from jobs.data.rows import Result
from jobs.data.sinks import open_sink
from jobs.data.sinks.export import ExportFormat, open_writer
from jobs.db.tables import Job
from jobs.errors import NotFound
from jobs.specs.array_spec import ARRAY
from jobs.specs.inference import TrainingSpec, parse_spec
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.live_key import while_valid
from scheduler.api.access.scope import find
from scheduler.api.context import InContext, JobId
from scheduler.api.errors import error_responses

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MEDIA_TYPES: dict[ExportFormat, str] = {
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
}
_STEP_ROWS = 64  # rows encoded between two sends; a row may be a megabyte
_BLOCK_BYTES = 256 * 2**10

router = APIRouter(
    prefix="/v1/jobs", tags=["results"], dependencies=[Depends(require_key)], responses=error_responses(400, 404)
)


@router.get(
    "/{job_id}/results",
    response_class=StreamingResponse,
    responses={200: {"content": {name: {} for name in _MEDIA_TYPES.values()}, "description": "The results."}},
)
def get_results(
    context: InContext,
    key: Key,
    job_id: JobId,
    format: Annotated[Literal["jsonl", "parquet", "csv"], Query(description="Format of the response.")] = "jsonl",  # noqa: A002
    after_row: Annotated[int, Query(ge=-1, le=2**63 - 1, description="Only rows with a larger index.")] = -1,
    limit: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Maximum number of rows.")] = None,
) -> StreamingResponse:
    """A job's results in row order, one per row: `row_index`, `key`, and either `output` or `error`.

    While the job runs, and after a cancel, these are the rows recorded so far. Rows between them may be missing, since
    chunks finish in any order. A response without the end of its chunked encoding is incomplete.
    """
    with context.database.read() as session:
        job = find(session, Job, job_id, key)
    if job.kind == ARRAY:
        raise NotFound(f"job {job_id} is an array; its children have the results")
    spec = parse_spec(job.spec)
    if isinstance(spec, TrainingSpec):
        raise NotFound(f"job {job_id} is a training and has no results; it has metrics and artifacts")
    vector_output = spec.vector_output
    sink = open_sink(spec.output, vector_output=vector_output, database=context.database, store=context.store)
    results = sink.read(job_id, after_row=after_row, limit=limit)
    return StreamingResponse(
        while_valid(write_results(results, format, vector_output=vector_output), context, key),
        media_type=_MEDIA_TYPES[format],
        headers={"content-disposition": f'attachment; filename="{job_id}.{format}"'},
    )


def write_results(results: Iterator[Result], fmt: ExportFormat, *, vector_output: bool) -> Iterator[bytes]:
    """Results in the requested format, as blocks of bytes."""
    outbox = _Outbox()
    with open_writer(fmt, cast("BinaryIO", outbox), vector_output=vector_output) as writer:
        while writer.add(islice(results, _STEP_ROWS)) == _STEP_ROWS:
            if outbox.num_waiting >= _BLOCK_BYTES:
                yield outbox.take()
    if outbox.num_waiting:
        yield outbox.take()


class _Outbox(io.RawIOBase):
    """A file object whose written bytes are sent and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[bytes] = []
        self._taken = 0
        self.num_waiting = 0
        """Bytes written and not yet sent."""

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Append all of `data`."""
        block = bytes(data)
        self._waiting.append(block)
        self.num_waiting += len(block)
        return len(block)

    def tell(self) -> int:
        """Bytes written so far; Parquet's footer stores such offsets."""
        return self._taken + self.num_waiting

    def take(self) -> bytes:
        """The bytes written since the last call."""
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._taken += len(taken)
        self.num_waiting = 0
        return taken
