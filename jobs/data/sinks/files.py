"""The file sink: one part in the store for each chunk, all merged in row order into one artifact at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.data.rows import Result
from jobs.data.sinks.database_sink import read_records
from jobs.data.sinks.protocol import NamedObject, PartFormat, PartWriter
from jobs.data.store import Store
from jobs.data.store_keys import artifact_key, part_key
from jobs.db.database import Database
from jobs.db.states import ChunkState
from jobs.db.tables import Chunk, Job
from jobs.errors import NotFound, StokerError

_RECORDED = (ChunkState.DONE, ChunkState.FAILED)
_PAGE_CHUNKS = 200


@dataclass(frozen=True, slots=True)
class _RecordedChunk:
    start_row: int
    stop_row: int
    part: str | None


class FileSink:
    """Writes each chunk's part under a key with the lease id; a part is valid only once its chunk's row names it."""

    makes_files: ClassVar[bool] = True

    def __init__(self, part_format: PartFormat, *, database: Database, store: Store) -> None:
        self._format = part_format
        self._database = database
        self._store = store

    def stage(self, job_id: str, lease_id: str, start_row: int, results: Sequence[Result]) -> str:
        """Write the chunk's part; see `Sink.stage`."""
        key = part_key(job_id, start_row, lease_id, self._format.suffix)
        with self._store.create(key) as draft, self._format.writer(draft) as part:
            part.add(results)
        return key

    def record(self, session: Session, job_id: str, results: Sequence[Result]) -> None:
        """Record nothing: the chunk's row, which names the part, is enough."""

    def read(self, job_id: str, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """See `Sink.read`."""
        return islice(self._results(job_id, after_row), limit)

    def merge(self, job_id: str) -> list[NamedObject]:
        """Copy the parts into `results.<format>` without parsing results; see `Sink.merge`."""
        name = f"results{self._format.suffix}"
        next_row = 0
        with self._store.create(artifact_key(job_id, name)) as draft, self._format.writer(draft) as merged:
            for chunk in self._recorded_chunks(job_id, -1):
                num_rows = self._copy(job_id, chunk, merged)
                if chunk.start_row != next_row or num_rows != chunk.stop_row - chunk.start_row:
                    raise StokerError(f"rows {next_row} to {chunk.stop_row - 1} do not all have exactly one result")
                next_row = chunk.stop_row
            if next_row != self._num_rows(job_id):
                raise StokerError(f"rows from {next_row} on have no result")
        return [NamedObject(name, draft.stored)]

    def _copy(self, job_id: str, chunk: _RecordedChunk, merged: PartWriter) -> int:
        if chunk.part is None:
            return merged.add(self._chunk_records(job_id, chunk))
        with closing(self._store.open(chunk.part)) as part:
            return merged.append(part)

    def _results(self, job_id: str, after_row: int) -> Iterator[Result]:
        for chunk in self._recorded_chunks(job_id, after_row):
            if chunk.part is None:
                yield from self._chunk_records(job_id, chunk, after_row)
            else:
                with closing(self._store.open(chunk.part)) as part:
                    yield from self._format.read(part, skip=max(0, after_row + 1 - chunk.start_row))

    def _chunk_records(self, job_id: str, chunk: _RecordedChunk, after_row: int = -1) -> Iterator[Result]:
        """Results of a chunk that has no part: its row errors are in the results table."""
        first = max(after_row, chunk.start_row - 1)
        return read_records(self._database, job_id, after_row=first, stop_row=chunk.stop_row)

    def _recorded_chunks(self, job_id: str, after_row: int) -> Iterator[_RecordedChunk]:
        """Yield the recorded chunks that have rows after `after_row`, with one query for each page."""
        of_job = col(Chunk.job_id) == job_id
        around = select(func.max(Chunk.start_row)).where(of_job, col(Chunk.start_row) <= after_row + 1)
        with self._database.read() as session:
            next_start = session.connection().execute(around).scalar() or 0
        while True:
            page = (
                select(col(Chunk.start_row), col(Chunk.stop_row), col(Chunk.part))
                .where(of_job, col(Chunk.start_row) >= next_start, col(Chunk.stop_row) > after_row + 1)
                .where(col(Chunk.state).in_(_RECORDED))
                .order_by(col(Chunk.start_row))
                .limit(_PAGE_CHUNKS)
            )
            with self._database.read() as session:
                chunks = [_RecordedChunk(*row) for row in session.connection().execute(page)]
            yield from chunks
            if len(chunks) < _PAGE_CHUNKS:
                return
            next_start = chunks[-1].stop_row

    def _num_rows(self, job_id: str) -> int:
        with self._database.read() as session:
            num_rows = session.connection().execute(select(col(Job.num_rows)).where(col(Job.id) == job_id)).scalar()
        if num_rows is None:
            raise NotFound(f"there is no job '{job_id}'")
        return int(num_rows)
