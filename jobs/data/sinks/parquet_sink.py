"""Result files in Parquet, with the columns row_index, key, output and error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.data.rows import Result
from jobs.data.sinks.lines import error_json, output_json, output_vector, parse_error, storable_text
from jobs.data.sinks.protocol import Output

_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 * 2**20
_BATCH_ROWS = 1024
_BATCH_BYTES = 4 * 2**20


class Parquet:
    """Writes `row_index` as int64, `key` as string, `output` as float32 list or JSON text, `error` as JSON text."""

    suffix = ".parquet"

    def __init__(self, *, vector_output: bool) -> None:
        """
        Args:
            vector_output: Whether an output is one float32 vector.
        """
        self._vector_output = vector_output
        self._schema = pa.schema(
            [
                ("row_index", pa.int64()),
                ("key", pa.string()),
                ("output", pa.list_(pa.float32()) if vector_output else pa.string()),
                ("error", pa.string()),
            ]
        )

    @contextmanager
    def writer(self, out: Output) -> Iterator[_GroupWriter]:
        """See `PartFormat.writer`."""
        # no dictionaries, because keys and outputs rarely repeat; statistics help readers that search for a row
        with pq.ParquetWriter(
            out, self._schema, compression="zstd", use_dictionary=False, write_statistics=["row_index"]
        ) as file:
            writer = _GroupWriter(file, self._schema, vector_output=self._vector_output)
            yield writer
            writer.finish()

    def read(self, part: BinaryIO, *, skip: int = 0) -> Iterator[Result]:
        """See `PartFormat.read`."""
        for batch in pq.ParquetFile(part).iter_batches(batch_size=_BATCH_ROWS):
            yield from self._results(batch.slice(skip))
            skip = max(0, skip - batch.num_rows)

    def _results(self, batch: Any) -> Iterator[Result]:
        indexes, keys, outputs, errors = batch.columns
        for place, index in enumerate(indexes.to_pylist()):
            key, error = keys[place].as_py(), errors[place].as_py()
            if error is not None:
                yield Result(index, key, error=parse_error(error))
            elif self._vector_output:
                yield Result(index, key, outputs[place].values.to_numpy().copy())
            else:
                yield Result(index, key, orjson.loads(outputs[place].as_py()))


class _GroupWriter:
    """Collects batches into row groups: large enough to scan fast, small enough to hold in memory."""

    def __init__(self, file: Any, schema: Any, *, vector_output: bool) -> None:
        self._file = file
        self._schema = schema
        self._vector_output = vector_output
        self._batches: list[Any] = []
        self._num_rows = 0
        self._num_bytes = 0

    def add(self, results: Iterable[Result]) -> int:
        num_rows = num_bytes = 0
        pending: list[tuple[Result, Any]] = []
        for result in results:
            output: Any = None
            if result.error is None:
                output = output_vector(result) if self._vector_output else output_json(result)
                num_bytes += output.nbytes if self._vector_output else len(output)
            pending.append((result, output))
            num_rows += 1
            if len(pending) == _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
                self._gather(self._batch(pending))
                pending, num_bytes = [], 0
        if pending:
            self._gather(self._batch(pending))
        return num_rows

    def append(self, part: BinaryIO) -> int:
        num_rows = 0
        for batch in pq.ParquetFile(part).iter_batches(batch_size=_BATCH_ROWS):
            self._gather(batch)
            num_rows += batch.num_rows
        return num_rows

    def finish(self) -> None:
        """Write the last row group."""
        if self._batches:
            self._file.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=_GROUP_ROWS)
        self._batches, self._num_rows, self._num_bytes = [], 0, 0

    def _gather(self, batch: Any) -> None:
        if self._num_rows + batch.num_rows > _GROUP_ROWS:
            self.finish()
        self._batches.append(batch)
        self._num_rows += batch.num_rows
        self._num_bytes += batch.nbytes
        if self._num_bytes >= _GROUP_BYTES:
            self.finish()

    def _batch(self, pending: Sequence[tuple[Result, Any]]) -> Any:
        results = [result for result, _ in pending]
        outputs = [output for _, output in pending]
        columns = [
            pa.array([result.row_index for result in results], pa.int64()),
            pa.array([None if result.key is None else storable_text(result.key) for result in results], pa.string()),
            _vectors(outputs) if self._vector_output else pa.array(outputs, pa.binary()).cast(pa.string()),
            pa.array([None if row.error is None else error_json(row.error) for row in results], pa.binary()).cast(
                pa.string()
            ),
        ]
        return pa.record_batch(columns, schema=self._schema)


def _vectors(outputs: Sequence[Any]) -> Any:
    """Build an Arrow column of float32 lists from vectors, with null for None, without a Python number per value."""
    lengths = [0 if vector is None else len(vector) for vector in outputs]
    offsets = np.zeros(len(outputs) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.concatenate([np.zeros(0, dtype=np.float32), *(vector for vector in outputs if vector is not None)])
    is_null = pa.array([vector is None for vector in outputs], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=pa.list_(pa.float32()), mask=is_null)
