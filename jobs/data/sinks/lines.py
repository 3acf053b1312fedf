"""Convert results to JSON lines for result files, and to JSON text and vectors for the database.

All sinks treat values that JSON or a database cannot hold in the same way. NaN and infinities are kept in vectors
outside JSON and become null within JSON; if one is the whole output, it becomes `"NaN"`, `"Infinity"` or `"-Infinity"`.
A NUL is escaped in outputs and errors and becomes U+FFFD in a key. Lone surrogates become U+FFFD everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from jobs.data.rows import Result, RowError
from jobs.errors import InvalidOutput

Vector = npt.NDArray[np.float32]
"""A one-dimensional array."""

_INT64 = range(-(2**63), 2**64)  # integers that orjson can write


def result_line(result: Result, *, vector_output: bool = False) -> bytes:
    """Write a result as `{"row_index":0,"key":"r0","output":...,"error":null}` and a newline.

    Args:
        vector_output: Whether the output must be a float32 vector.

    Raises:
        InvalidOutput: The output cannot be written as JSON, or is not a vector although it must be one.
    """
    key = b"null" if result.key is None else orjson.dumps(storable_text(result.key))
    error = b"null" if result.error is None else error_json(result.error)
    output = b"null"
    if result.error is None:
        output = _dump(output_vector(result)) if vector_output else output_json(result)
    return b'{"row_index":%d,"key":%b,"output":%b,"error":%b}\n' % (result.row_index, key, output, error)


def parse_line(line: bytes, *, vector_output: bool) -> Result:
    """Parse a line that `result_line` wrote."""
    fields = orjson.loads(line)
    if fields["error"] is not None:
        return Result(fields["row_index"], fields["key"], error=RowError(**fields["error"]))
    output = np.array(fields["output"], dtype=np.float32) if vector_output else fields["output"]
    return Result(fields["row_index"], fields["key"], output)


def output_json(result: Result) -> bytes:
    """A result's output as JSON text.

    Raises:
        InvalidOutput: The output cannot be written as JSON.
    """
    try:
        written = _dump(result.output)
    except TypeError as error:
        raise InvalidOutput(f"row {result.row_index}: the output cannot be written as JSON: {error}") from error
    if written != b"null":
        return written
    text = str(float(result.output))  # type: ignore[arg-type]  # only NaN and infinities are written as null
    return {"nan": b'"NaN"', "inf": b'"Infinity"', "-inf": b'"-Infinity"'}[text]


def error_json(error: RowError) -> bytes:
    """A row error as JSON text."""
    return _dump(error.to_json())


def parse_error(text: str | bytes) -> RowError:
    """Parse a row error that `error_json` wrote."""
    return RowError(**orjson.loads(text))


def output_vector(result: Result) -> Vector:
    """A result's output as a float32 vector.

    Raises:
        InvalidOutput: The output is not a vector.
    """
    vector = output_vectors(result)
    if vector.ndim != 1:
        raise InvalidOutput(f"row {result.row_index}: the output is not a vector but has shape {vector.shape}")
    return vector


def output_vectors(result: Result) -> npt.NDArray[np.float32]:
    """A result's output as a float32 array of any number of dimensions.

    Raises:
        InvalidOutput: The output is not an array of numbers.
    """
    try:
        return np.asarray(result.output, dtype="<f4", order="C")
    except (TypeError, ValueError) as error:
        raise InvalidOutput(f"row {result.row_index}: the output is not a vector: {error}") from error


def storable_text(text: str) -> str:
    """Replace what PostgreSQL (NUL) or UTF-8 (lone surrogates) cannot hold by U+FFFD."""
    return _encodable(text.replace("\0", "\ufffd"))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # slow but rare: replace the values that orjson rejects
        return orjson.dumps(_mended(value), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """Convert numbers and arrays that orjson does not support (strided, 0-d, unusual types) to plain Python values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError  # orjson's own message names the type


def _mended(value: Any) -> Any:
    match value:
        case str():
            return _encodable(value)
        case dict():
            return {_mended(key) if isinstance(key, str) else str(key): _mended(item) for key, item in value.items()}
        case list() | tuple():
            return [_mended(item) for item in value]
        case np.ndarray() | np.generic():
            return _mended(value.tolist())
        case int() if value not in _INT64:
            return str(value)
    return value
