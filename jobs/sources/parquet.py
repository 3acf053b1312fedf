"""Read Parquet by row groups: only the columns that are needed, a few rows at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InvalidInput
from jobs.paths import is_local
from jobs.sources import opening
from jobs.sources.arrow import table_records
from jobs.sources.class_names import names_in_metadata
from jobs.sources.reader import Cut, InputFile, Record

_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 256  # bounds what a long value that a dictionary repeats can take
_BUFFER_BYTES = 2**20


@dataclass(slots=True)
class _Cursor:
    """A file that is being decoded, and how far that got."""

    file: InputFile
    group_starts: list[int]
    """The file's row at which each row group begins."""
    batches: Iterator[pa.RecordBatch]
    row: int
    """The file's row that comes next: the first one of `batch`, or else of `batches`."""
    batch: pa.RecordBatch | None
    resources: ExitStack


class ParquetReader:
    """Reads `.parquet` files.

    Row groups are decoded as they are read, so a chunk may be a small part of a large group. The place where a read
    stopped is kept open: the next chunk behind it goes on there instead of decoding its group from the beginning.
    """

    def __init__(self, *, columns: Sequence[str]) -> None:
        """
        Args:
            columns: top-level columns to read; one that a file lacks is left out of its records.
        """
        self._columns = frozenset(columns)
        self._cursor: _Cursor | None = None

    def stamped(self, file: InputFile) -> InputFile:
        """The same file with its present size and stamp."""
        return opening.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The top-level columns of the schema."""
        with _decoding(file), opening.opened(file) as handle, pq.ParquetFile(handle) as parquet:
            return list(parquet.schema_arrow.names)

    def class_names(self, file: InputFile, column: str) -> list[str] | None:
        """The names that the `datasets` library wrote beside the schema."""
        with _decoding(file), opening.opened(file) as handle, pq.ParquetFile(handle) as parquet:
            return names_in_metadata(parquet.schema_arrow.metadata, column)

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Cut by the row counts in the file's footer; no data is read."""
        with _decoding(file), opening.opened(file) as handle, pq.ParquetFile(handle) as parquet:
            starts = _group_starts(parquet.metadata)
            num_rows = parquet.metadata.num_rows
        for row in range(0, num_rows, chunk_rows):
            group = bisect_right(starts, row) - 1
            yield Cut(row, min(row + chunk_rows, num_rows), starts[group], {"group": group})

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Decode the rows behind the beginning of the row group at `place`."""
        cursor, self._cursor = self._cursor, None  # taken out, so that reads that overlap do not share one
        group: int = place["group"]
        with _decoding(file):
            if cursor is None or not _can_go_on(cursor, file, group, skip):
                if cursor is not None:
                    cursor.resources.close()
                cursor = self._open(file, group)
            try:
                first = cursor.group_starts[group] + skip
                for batch in _advance(cursor, first, first + count):
                    yield from table_records(batch)
            except BaseException:
                cursor.resources.close()
                raise
        self._cursor = cursor

    def _open(self, file: InputFile, group: int) -> _Cursor:
        with ExitStack() as resources:
            handle = resources.enter_context(opening.opened(file))
            parquet = resources.enter_context(pq.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False))
            starts = _group_starts(parquet.metadata)
            columns = [name for name in parquet.schema_arrow.names if name in self._columns]
            batches = parquet.iter_batches(
                batch_size=_batch_rows(parquet.metadata, group, columns),
                row_groups=range(group, len(starts)),
                columns=columns,
                use_threads=False,
            )
            return _Cursor(file, starts, batches, starts[group], None, resources.pop_all())


def _can_go_on(cursor: _Cursor, file: InputFile, group: int, skip: int) -> bool:
    start = cursor.group_starts[group] if cursor.file == file else -1
    return start >= 0 and start <= cursor.row <= start + skip


def _advance(cursor: _Cursor, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    """The rows [first, stop) of the file in batches; what is left of the last one stays in the cursor."""
    while cursor.row < stop:
        batch = cursor.batch if cursor.batch is not None else next(cursor.batches, None)
        if batch is None:
            return
        begin = min(max(first - cursor.row, 0), batch.num_rows)
        end = min(stop - cursor.row, batch.num_rows)
        cursor.batch = batch.slice(end) if end < batch.num_rows else None
        cursor.row += end
        if begin < end:
            yield batch.slice(begin, end - begin)


def _group_starts(metadata: Any) -> list[int]:
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return list(accumulate(counts[:-1], initial=0)) if counts else []


def _batch_rows(metadata: Any, group: int, columns: list[str]) -> int:
    """Rows of about `_BATCH_BYTES`, going by the average in the row group."""
    facts = metadata.row_group(group)
    chunks = [facts.column(at) for at in range(facts.num_columns)]
    num_bytes = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    fitting: int = _BATCH_BYTES * facts.num_rows // max(num_bytes, 1)
    return max(1, min(_BATCH_ROWS, fitting))


@contextmanager
def _decoding(file: InputFile) -> Iterator[None]:
    try:
        with opening.translated(file):
            try:
                yield
            except OSError as error:
                if (
                    error.errno is None and type(error) is OSError and is_local(file.url)
                ):  # Arrow's word for damaged data
                    raise _not_parquet(file, error) from error
                raise
    except pa.ArrowException as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: InputFile, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{opening.PARAM}: '{file.name}' is not a readable Parquet file: {opening.first_line(error)}",
        param=opening.PARAM,
    )
