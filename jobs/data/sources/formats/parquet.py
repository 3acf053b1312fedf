"""Read Parquet by row groups, only the needed columns, a few rows at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.access.paths import is_local
from jobs.data.sources import open_file
from jobs.data.sources.formats.arrow import table_records
from jobs.data.sources.formats.class_names import names_in_metadata
from jobs.data.sources.formats.parquet_pages import Dictionary, column_fault, dictionaries, repeated_bytes
from jobs.data.sources.reader import LARGE_BYTES, Cut, InputFile, Record
from jobs.errors import InvalidInput
from jobs.messages import first_line

_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20
_MOST_ROWS_PER_BYTE = 100_000
"""Writers put tens of thousands of rows in a page, and a page of equal values takes tens of bytes."""


@dataclass(slots=True)
class _Cursor:
    """A file that is being decoded, and the current position."""

    file: InputFile
    group_starts: list[int]
    """First row of each row group, counted in the file."""
    batches: Iterator[pa.RecordBatch]
    row: int
    """The next row in the file: the first row of `batch` or, if that is None, of `batches`."""
    batch: pa.RecordBatch | None
    resources: ExitStack


class ParquetReader:
    """Reads `.parquet` files.

    Row groups are decoded as they are read, so a chunk may be a small part of a large group. The file stays open where
    a read stopped, so that the next chunk continues there instead of decoding its group from the beginning.
    """

    def __init__(self, *, columns: Sequence[str], max_row_bytes: int) -> None:
        """
        Args:
            columns: Top-level columns to read; a column that a file does not have is missing in its records.
            max_row_bytes: Maximum size of a value; a larger one is a row error.
        """
        self._columns = frozenset(columns)
        self._max_row_bytes = max_row_bytes
        self._cursor: _Cursor | None = None

    def stamped(self, file: InputFile) -> InputFile:
        """Return the file with its current size and stamp."""
        return open_file.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The top-level columns of the schema."""
        with self._file(file) as parquet:
            return list(parquet.schema_arrow.names)

    def class_names(self, file: InputFile, column: str) -> list[str] | None:
        """The class names that the `datasets` library wrote to the schema's metadata."""
        with self._file(file) as parquet:
            return names_in_metadata(parquet.schema_arrow.metadata, column)

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Split by the row counts in the file's footer; no data is read."""
        with self._file(file) as parquet:
            starts = _group_starts(parquet.metadata)
            num_rows = parquet.metadata.num_rows
        for row in range(0, num_rows, chunk_rows):
            group = bisect_right(starts, row) - 1
            yield Cut(row, min(row + chunk_rows, num_rows), starts[group], {"group": group})

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Decode rows from the beginning of the row group at `place`, or from the open cursor."""
        cursor, self._cursor = self._cursor, None  # taken out, so that overlapping reads do not share a cursor
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

    @contextmanager
    def _file(self, file: InputFile) -> Iterator[Any]:
        """Open the file, after checking that it can be decoded in bounded memory."""
        with open_file.opened(file) as handle, _decoding(file), pq.ParquetFile(handle) as parquet:
            fault = expansion(parquet.metadata, handle.seek(0, 2), self._columns, self._max_row_bytes)
            if fault is not None:
                raise InvalidInput(f"{open_file.PARAM}: '{file.name}' {fault}", param=open_file.PARAM)
            yield parquet

    def _open(self, file: InputFile, group: int) -> _Cursor:
        with ExitStack() as resources:
            handle = resources.enter_context(open_file.opened(file))
            resources.enter_context(_decoding(file))
            parquet = resources.enter_context(pq.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False))
            starts = _group_starts(parquet.metadata)
            batches = chain.from_iterable(
                self._batches(file, handle, parquet, each) for each in range(group, len(starts))
            )
            return _Cursor(file, starts, batches, starts[group], None, resources.pop_all())

    def _batches(self, file: InputFile, handle: BinaryIO, parquet: Any, group: int) -> Iterator[pa.RecordBatch]:
        """Check the pages of a row group, and then decode it a few rows at a time."""
        facts = parquet.metadata.row_group(group)
        columns = [name for name in parquet.schema_arrow.names if name in self._columns]
        is_remote = not is_local(file.url)
        try:
            found = dictionaries(handle, facts, columns, self._max_row_bytes, is_remote=is_remote)
        except ValueError as error:
            raise InvalidInput(f"{open_file.PARAM}: '{file.name}' {error}", param=open_file.PARAM) from error
        # One row of a list may repeat a value any number of times, so such a column keeps its dictionary.
        kept = [each.path for each in found if "." in each.path and _may_swell(each)]
        longest = max((each.num_bytes for each in found if each.path not in kept), default=0)
        num_rows = min(_batch_rows(facts, columns), LARGE_BYTES // max(longest, 1))
        buffering: dict[str, Any] = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
        reader = pq.ParquetFile(handle, metadata=parquet.metadata, read_dictionary=kept, **buffering)
        options: dict[str, Any] = {"columns": columns, "use_threads": False}
        for batch in reader.iter_batches(batch_size=max(1, num_rows), row_groups=[group], **options):
            yield from _written_out(file, batch, parquet.schema_arrow) if kept else (batch,)


def _written_out(file: InputFile, batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Decode the dictionaries that the schema does not have, in parts that stay small when decoded."""
    num_bytes = sum(map(repeated_bytes, batch.columns))
    if num_bytes <= LARGE_BYTES:
        plain = {field.name: field for field in schema}
        yield batch.cast(pa.schema([plain[name] for name in batch.schema.names]))
    elif batch.num_rows > 1:
        middle = batch.num_rows // 2
        yield from _written_out(file, batch.slice(0, middle), schema)
        yield from _written_out(file, batch.slice(middle), schema)
    else:
        raise InvalidInput(
            f"{open_file.PARAM}: '{file.name}' has a row that expands to {num_bytes} bytes by repeated values, more "
            f"than {LARGE_BYTES}",
            param=open_file.PARAM,
        )


def _can_go_on(cursor: _Cursor, file: InputFile, group: int, skip: int) -> bool:
    start = cursor.group_starts[group] if cursor.file == file else -1
    return start >= 0 and start <= cursor.row <= start + skip


def _advance(cursor: _Cursor, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows [first, stop) of the file in batches; the rest of the last batch stays in the cursor."""
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


def _may_swell(dictionary: Dictionary) -> bool:
    """Whether the column would be too large if all its values were the longest one."""
    return dictionary.num_bytes * dictionary.num_values > LARGE_BYTES


def _batch_rows(facts: Any, columns: list[str]) -> int:
    """Number of rows that take about `_BATCH_BYTES`, by the average row size in the row group."""
    chunks = [facts.column(at) for at in range(facts.num_columns)]
    num_bytes = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    fitting: int = _BATCH_BYTES * facts.num_rows // max(num_bytes, 1)
    return max(1, min(_BATCH_ROWS, fitting))


def expansion(metadata: Any, num_bytes: int, columns: Collection[str] | None, max_row_bytes: int) -> str | None:
    """The reason, from the footer, why a file would expand too much when it is decoded; None if it would not.

    Args:
        metadata: The file's footer.
        num_bytes: Size of the file.
        columns: Top-level columns that will be read; None for all.
        max_row_bytes: Maximum size of a value; a larger one is a row error.
    """
    if metadata.num_rows > _MOST_ROWS_PER_BYTE * num_bytes:
        return f"claims to have {metadata.num_rows} rows in {num_bytes} bytes, which is not possible with real rows"
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        for at in range(facts.num_columns):
            chunk = facts.column(at)
            name = chunk.path_in_schema.split(".")[0]
            if columns is None or name in columns:
                fault = column_fault(name, chunk.total_uncompressed_size, facts.num_rows, max_row_bytes)
                if fault is not None:
                    return fault
    return None


@contextmanager
def _decoding(file: InputFile) -> Iterator[None]:
    try:
        with open_file.translated(file):
            try:
                yield
            except OSError as error:
                if error.errno is None and type(error) is OSError and is_local(file.url):  # how Arrow reports damage
                    raise _not_parquet(file, error) from error
                raise
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: InputFile, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{open_file.PARAM}: '{file.name}' is not a readable Parquet file: {first_line(error)}",
        param=open_file.PARAM,
    )
