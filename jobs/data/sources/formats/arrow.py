"""Convert Arrow tables to rows of Python values; an invalid value fails only its row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.reader import Record


def table_records(table: pa.Table | pa.RecordBatch) -> Iterator[Record]:
    """Yield one record for each row of `table`, which has only the requested columns."""
    names = table.column_names
    columns = [_values(name, table.column(at)) for at, name in enumerate(names)]
    for at in range(table.num_rows):
        error = next((column[at] for column in columns if isinstance(column[at], RowError)), None)
        yield Record(error or {name: column[at] for name, column in zip(names, columns, strict=True)}, None)


def _values(name: str, column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return [_value(name, scalar) for scalar in column]
    return values


def _value(name: str, scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return RowError(RowErrorCode.INVALID_UTF8, f"column '{name}' is not valid UTF-8")
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return RowError(
            RowErrorCode.INVALID_VALUE, f"column '{name}' has a value that Python cannot represent: {error}"
        )
