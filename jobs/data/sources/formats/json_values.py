"""Parse one row of JSON: an object with the user's columns.

What JSON leaves open: `NaN`, `Infinity` and numbers beyond a double, which other programs write, are the error of rows
that use the column they stand in; lone surrogates (escaped or as bytes), control characters in strings and more than
1,024 levels of nesting make the row an error; integers beyond 64 bits are read as the nearest double; of two equal
names in one object the last counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.formats.encodings import TextEncoding
from jobs.data.sources.formats.texts import row_text

_MAY_BE_NO_JSON = re.compile(rb"NaN|Infinity|[0-9][eE]\+?[0-9]{3}|[0-9]{309}")
_INTEGERS = range(-(2**63), 2**64)


class _NoNumber:
    """Stands where a number is that JSON does not have."""

    def __init__(self, text: str) -> None:
        self.text = text if len(text) <= len("-Infinity") else "a number beyond the range of doubles"


def parse_object(data: bytes, line: int, encoding: TextEncoding, *, what: str) -> Mapping[str, Any] | RowError:
    """The user's columns of one row.

    Args:
        data: the row's bytes.
        line: its physical line.
        encoding: of the file.
        what: the row's name in messages, such as `line`.
    """
    text: bytes | str | RowError = data if encoding.is_utf8 else row_text(data, line, encoding)
    if isinstance(text, RowError):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        decoded = row_text(data, line, encoding)
        if isinstance(decoded, RowError):
            return decoded
        value = _lax(decoded) if _MAY_BE_NO_JSON.search(data) else None
        if value is None:
            message = f"the {what} is not valid JSON: {error.msg} (column {error.pos + 1})"
            return RowError(RowErrorCode.INVALID_JSON_LINE, message, line)
    if not isinstance(value, dict):
        return RowError(RowErrorCode.NOT_AN_OBJECT, f"the {what} is JSON but not an object with columns", line)
    return value


def _lax(text: str) -> Any:
    """The value of JSON that has numbers which JSON does not have; None where something else is wrong with it.

    A column that such a number stands in is a RowError in its place.
    """
    try:
        value = json.loads(text, parse_constant=_NoNumber, parse_float=_double, parse_int=_integer)
        orjson.dumps(value, default=lambda _: None)  # refuses what `orjson.loads` would: lone surrogates
    except (ValueError, RecursionError, orjson.JSONEncodeError):
        return None
    if not isinstance(value, dict):
        return value
    return {name: _column(name, column) for name, column in value.items()}


def _column(name: str, value: Any) -> Any:
    found = _first(value)
    if found is None:
        return value
    return RowError(RowErrorCode.INVALID_VALUE, f"column '{name}' holds {found.text}, which JSON does not have")


def _first(value: Any) -> _NoNumber | None:
    if isinstance(value, _NoNumber):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := _first(item)) is not None), None)


def _double(text: str) -> float | _NoNumber:
    number = float(text)
    return number if math.isfinite(number) else _NoNumber(text)


def _integer(text: str) -> int | float | _NoNumber:
    if len(text) > 400:  # Python refuses to make integers of some thousand digits
        return _NoNumber(text)
    number = int(text)
    if number in _INTEGERS:
        return number
    return _double(text)
