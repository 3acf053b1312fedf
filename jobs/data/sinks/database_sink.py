"""The database sink: results in the `results` table, vectors as float32 blobs, other outputs as JSON text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeGuard

import numpy as np
import orjson
from sqlalchemy import insert, select
from sqlmodel import Session, SQLModel

from jobs.data.rows import Result
from jobs.data.sinks.lines import error_json, output_json, output_vector, output_vectors, parse_error, storable_text
from jobs.data.sinks.protocol import NamedObject
from jobs.db.database import Database
from jobs.db.tables import ResultRecord

_RESULTS = SQLModel.metadata.tables[str(ResultRecord.__tablename__)]
_PAGE_ROWS = 2000
_PAGE_BYTES = 4 * 2**20
_SEVERAL = 2  # number of dimensions of an array of several vectors
_FIRST_FETCH_ROWS = 16  # by these, the size of the following rows is estimated
_FETCH_ROWS = 512  # most rows of one fetch, which is a round trip; a page may exceed `_PAGE_BYTES` by one fetch


class DatabaseSink:
    """Inserts results into the table, in the same transaction that marks their chunk done."""

    makes_files: ClassVar[bool] = False

    def __init__(self, database: Database, *, vector_output: bool) -> None:
        """
        Args:
            vector_output: Whether an output is one float32 vector. Several vectors of one row, of shape (K, E), are
                recognized without it.
        """
        self._database = database
        self._vector_output = vector_output

    def stage(self, job_id: str, lease_id: str, start_row: int, results: Sequence[Result]) -> None:
        """Do nothing: this sink writes only to the database."""

    def record(self, session: Session, job_id: str, results: Sequence[Result]) -> None:
        """Insert the results in one statement; see `Sink.record`."""
        if results:  # an executemany of no rows would insert one row of defaults
            session.connection().execute(insert(_RESULTS), [self._record(job_id, result) for result in results])

    def read(self, job_id: str, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """See `Sink.read`."""
        return read_records(self._database, job_id, after_row=after_row, limit=limit)

    def merge(self, job_id: str) -> list[NamedObject]:  # noqa: ARG002
        """Return no artifacts: the table already holds the results."""
        return []

    def _record(self, job_id: str, result: Result) -> dict[str, Any]:
        output = vector = error = None
        if result.error is not None:
            error = error_json(result.error).decode()
        elif self._vector_output:
            vector = output_vector(result).tobytes()
        elif _is_several_vectors(result.output):
            vector, output = output_vectors(result).tobytes(), orjson.dumps(result.output.shape).decode()
        else:
            output = output_json(result).decode()
        key = None if result.key is None else storable_text(result.key)
        return {
            "job_id": job_id, "row_index": result.row_index, "key": key, "output": output, "vector": vector,
            "error": error, "num_tokens": result.num_tokens,
        }  # fmt: skip


def _is_several_vectors(output: object) -> TypeGuard[np.ndarray]:
    return isinstance(output, np.ndarray) and output.ndim == _SEVERAL and output.dtype == np.float32


def read_records(
    database: Database, job_id: str, *, after_row: int = -1, stop_row: int | None = None, limit: int | None = None
) -> Iterator[Result]:
    """Yield results from the table in row order, in pages of bounded rows and bytes, one transaction per page.

    Args:
        after_row: Only results of rows after this one are read.
        stop_row: Only results of rows before this one are read; None for no bound.
        limit: Maximum number of results; None for no limit.
    """
    left = limit
    while left is None or left > 0:
        num_rows = _PAGE_ROWS if left is None else min(left, _PAGE_ROWS)
        page, is_last = _read_page(database, job_id, after_row, stop_row, num_rows)
        yield from page
        if is_last:
            return
        after_row = page[-1].row_index
        left = None if left is None else left - len(page)


def _read_page(
    database: Database, job_id: str, after_row: int, stop_row: int | None, num_rows: int
) -> tuple[list[Result], bool]:
    columns = [_RESULTS.c[name] for name in ("row_index", "key", "output", "vector", "error", "num_tokens")]
    wanted = select(*columns).where(_RESULTS.c.job_id == job_id, _RESULTS.c.row_index > after_row)
    if stop_row is not None:
        wanted = wanted.where(_RESULTS.c.row_index < stop_row)
    wanted = wanted.order_by(_RESULTS.c.row_index).limit(num_rows).execution_options(stream_results=True)
    page: list[Result] = []
    num_bytes, num_wanted = 0, _FIRST_FETCH_ROWS
    with database.read() as session, session.connection().execute(wanted) as rows:
        while fetched := rows.fetchmany(num_wanted):
            for row in fetched:
                page.append(_as_result(row))
                num_bytes += len(row.vector or row.output or row.error)
                if num_bytes >= _PAGE_BYTES:
                    return page, False
            num_left = (_PAGE_BYTES - num_bytes) * len(page) // max(num_bytes, 1) + 1
            num_wanted = min(num_left, _FETCH_ROWS)
    return page, len(page) < num_rows


def _as_result(row: Any) -> Result:
    place = (row.row_index, row.key)
    if row.error is not None:
        return Result(*place, error=parse_error(row.error), num_tokens=row.num_tokens)
    if row.vector is not None:
        vector = np.frombuffer(row.vector, dtype="<f4").copy()  # a blob is read-only
        if row.output is not None:
            vector = vector.reshape(orjson.loads(row.output))
        return Result(*place, vector, num_tokens=row.num_tokens)
    return Result(*place, orjson.loads(row.output), num_tokens=row.num_tokens)
