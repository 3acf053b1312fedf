"""Parse one row of JSON: an object with the user's columns.

Special cases:

- `NaN`, `Infinity` and numbers too large for a double, which some programs write, are errors of rows whose job uses
  the column.
- Lone surrogates (escaped or as bytes), control characters in strings and more than 1,024 levels of nesting are row
  errors.
- Integers beyond 64 bits are read as the nearest double.
- If an object has two equal names, the last one is used.
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
    """Placeholder for a number that JSON does not have."""

    def __init__(self, text: str) -> None:
        self.text = text if len(text) <= len("-Infinity") else "a number beyond the range of doubles"


def parse_object(data: bytes, line: int, encoding: TextEncoding, *, what: str) -> Mapping[str, Any] | RowError:
    """Parse one row to the user's columns.

    Args:
        data: The row's bytes.
        line: The row's 1-based physical line.
        encoding: The file's encoding.
        what: Word for the row in messages, such as `line`.
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
    """Parse JSON that contains numbers which JSON does not have; returns None if it is invalid for another reason.

    The value of a column that contains such a number is a RowError.
    """
    try:
        value = json.loads(text, parse_constant=_NoNumber, parse_float=_double, parse_int=_integer)
        orjson.dumps(value, default=lambda _: None)  # raises for lone surrogates, as `orjson.loads` does
    except (ValueError, RecursionError, orjson.JSONEncodeError):
        return None
    if not isinstance(value, dict):
        return value
    return {name: _column(name, column) for name, column in value.items()}


def _column(name: str, value: Any) -> Any:
    found = _first(value)
    if found is None:
        return value
    return RowError(RowErrorCode.INVALID_VALUE, f"column '{name}' contains {found.text}, which is not valid JSON")


def _first(value: Any) -> _NoNumber | None:
    if isinstance(value, _NoNumber):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := _first(item)) is not None), None)


def _double(text: str) -> float | _NoNumber:
    number = float(text)
    return number if math.isfinite(number) else _NoNumber(text)


def _integer(text: str) -> int | float | _NoNumber:
    if len(text) > 400:  # Python does not parse integers of several thousand digits
        return _NoNumber(text)
    number = int(text)
    if number in _INTEGERS:
        return number
    return _double(text)
