"""Results as JSON: one line of a result file, and the texts and vectors that the database keeps.

What JSON or a database cannot hold has one outcome in every sink. NaN and infinities stay what they are in vectors
outside JSON and are null within JSON (`"NaN"`, `"Infinity"` or `"-Infinity"` where one is the whole output). A NUL is
kept in outputs and errors, escaped, and becomes U+FFFD in a key, as lone surrogates do everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from jobs.data.rows import Result, RowError
from jobs.errors import InvalidOutput

Vector = npt.NDArray[np.float32]
"""One-dimensional."""

_INT64 = range(-(2**63), 2**64)  # what orjson writes as an integer


def result_line(result: Result, *, vector_output: bool = False) -> bytes:
    """`{"row_index":0,"key":"r0","output":...,"error":null}` and a newline.

    Args:
        vector_output: make sure that the output is a float32 vector.

    Raises:
        InvalidOutput: the output cannot be written as JSON, or is not a vector where it must be one.
    """
    key = b"null" if result.key is None else orjson.dumps(storable_text(result.key))
    error = b"null" if result.error is None else error_json(result.error)
    output = b"null"
    if result.error is None:
        output = _dump(output_vector(result)) if vector_output else output_json(result)
    return b'{"row_index":%d,"key":%b,"output":%b,"error":%b}\n' % (result.row_index, key, output, error)


def parse_line(line: bytes, *, vector_output: bool) -> Result:
    """The result of a line that `result_line` made."""
    fields = orjson.loads(line)
    if fields["error"] is not None:
        return Result(fields["row_index"], fields["key"], error=RowError(**fields["error"]))
    output = np.array(fields["output"], dtype=np.float32) if vector_output else fields["output"]
    return Result(fields["row_index"], fields["key"], output)


def output_json(result: Result) -> bytes:
    """A result's output as JSON text.

    Raises:
        InvalidOutput: it cannot be written as JSON.
    """
    try:
        written = _dump(result.output)
    except TypeError as error:
        raise InvalidOutput(f"row {result.row_index}: the output cannot be written as JSON: {error}") from error
    if written != b"null":
        return written
    text = str(float(result.output))  # type: ignore[arg-type]  # only a float that is no number is written as null
    return {"nan": b'"NaN"', "inf": b'"Infinity"', "-inf": b'"-Infinity"'}[text]


def error_json(error: RowError) -> bytes:
    """A row error as JSON text."""
    return _dump(error.to_json())


def parse_error(text: str | bytes) -> RowError:
    """The row error that `error_json` wrote."""
    return RowError(**orjson.loads(text))


def output_vector(result: Result) -> Vector:
    """A result's output as a float32 vector.

    Raises:
        InvalidOutput: it is not one.
    """
    vector = output_vectors(result)
    if vector.ndim != 1:
        raise InvalidOutput(f"row {result.row_index}: the output is not a vector but has shape {vector.shape}")
    return vector


def output_vectors(result: Result) -> npt.NDArray[np.float32]:
    """A result's output as a float32 array of any number of dimensions.

    Raises:
        InvalidOutput: it is not one.
    """
    try:
        return np.asarray(result.output, dtype="<f4", order="C")
    except (TypeError, ValueError) as error:
        raise InvalidOutput(f"row {result.row_index}: the output is not a vector: {error}") from error


def storable_text(text: str) -> str:
    """The text with U+FFFD for what PostgreSQL (NUL) or UTF-8 (lone surrogates) cannot hold."""
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
    except TypeError:  # slow but rare: find what orjson refuses and put what JSON can say in its place
        return orjson.dumps(_mended(value), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """Numbers and arrays that orjson does not know by itself (strided, 0-d, odd types), as plain Python values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError  # orjson says which type it was


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
