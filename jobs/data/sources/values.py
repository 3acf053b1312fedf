"""Convert a record to a task's row: the user's columns become the task's inputs, and the key becomes text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date, time
from typing import Any

import orjson

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.data.sources.media import MEDIA_INPUTS, media_value
from jobs.data.sources.reader import Record

TEXT_INPUTS = frozenset({"text", "text_pair", "query", "question"})
"""Inputs that must be text; other inputs are passed on unchanged."""
LISTABLE_INPUTS = frozenset({"text"})
"""Text inputs that may also be a list for some tasks (chat messages, token ids); other tasks reject it."""

_LARGEST_EXACT = 2**63  # beyond it, JSON integers were read as doubles
_NO_VALUES: Mapping[str, Any] = {}
_ABSENT = object()


class RowMapper:
    """Maps records to rows."""

    def __init__(
        self, columns: Mapping[str, str], key: str | None, *, max_row_bytes: int, optional: Collection[str] = ()
    ) -> None:
        """
        Args:
            columns: Maps the task's input names to the user's columns.
            key: The user's column that identifies a row; None if there is none.
            optional: Names of inputs that are omitted if their column is missing, null or an empty text.
            max_row_bytes: Maximum size of a text or binary value.
        """
        self._columns = tuple(columns.items())
        self._optional = frozenset(optional)
        self._key = key
        self._max_row_bytes = max_row_bytes

    def row(self, row_index: int, record: Record) -> Row:
        """Convert a record to the row at `row_index`; its `error` is that of the first invalid input."""
        found, line = record
        if isinstance(found, RowError):
            return Row(row_index, None, _NO_VALUES, found)
        cell = None if self._key is None else found.get(self._key)
        key = cell if isinstance(cell, RowError) else key_text(cell)
        if isinstance(key, RowError):
            return Row(row_index, None, _NO_VALUES, replace(key, line=line))
        values: dict[str, Any] = {}
        for name, column in self._columns:
            value = self._value(name, column, found.get(column, _ABSENT))
            if isinstance(value, RowError):
                return Row(row_index, key, _NO_VALUES, replace(value, line=line))
            if value is not _ABSENT:
                values[name] = value
        return Row(row_index, key, values, line=line)

    def _value(self, name: str, column: str, value: Any) -> Any:
        """The input's value, its row error, or `_ABSENT` for an optional input that is missing."""
        if isinstance(value, RowError):
            return value
        if name in MEDIA_INPUTS and isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if name in self._optional and (value is _ABSENT or value is None or (isinstance(value, str) and not value)):
            return _ABSENT
        if value is _ABSENT:
            return RowError(RowErrorCode.MISSING_COLUMN, f"the row has no column '{column}'")
        if value is None:
            return RowError(RowErrorCode.NULL_VALUE, f"column '{column}' is null")
        is_list = name in LISTABLE_INPUTS and isinstance(value, list)
        if name in TEXT_INPUTS and not isinstance(value, str) and not is_list:
            return RowError(
                RowErrorCode.WRONG_TYPE, f"column '{column}' must be text for input '{name}', not {kind_name(value)}"
            )
        if isinstance(value, (str, bytes)) and _is_longer(value, self._max_row_bytes):
            limit = self._max_row_bytes
            return RowError(
                RowErrorCode.ROW_TOO_LARGE, f"column '{column}' is longer than {limit} bytes (setting max_row_bytes)"
            )
        return media_value(name, value) if name in MEDIA_INPUTS else value


def key_text(value: Any) -> str | RowError | None:
    """Convert a key to text.

    Args:
        value: The cell of the key column.

    Returns:
        Text unchanged; integers in decimal; dates in ISO 8601; booleans, other numbers, lists and objects as JSON; None
        for null and for NaN, which data frames write for null; a RowError for a value that cannot be kept exactly.
    """
    if value is None or value != value:
        return None
    if isinstance(value, float) and abs(value) >= _LARGEST_EXACT:
        return RowError(
            RowErrorCode.INVALID_KEY, "the key is a number too large to be stored exactly; write it as a string"
        )
    text = _text_of(value)
    if "\0" in text:
        return RowError(RowErrorCode.INVALID_KEY, "the key contains a zero character, which databases cannot store")
    return text


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool) or not isinstance(value, (float, list, dict)):
        return str(value).lower() if isinstance(value, bool) else _iso(value)
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _iso(value: Any) -> str:
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


def _is_longer(value: str | bytes, max_bytes: int) -> bool:
    if isinstance(value, bytes) or len(value) > max_bytes:
        return len(value) > max_bytes
    return len(value) * 4 > max_bytes and len(value.encode()) > max_bytes


def kind_name(value: Any) -> str:
    """The kind of a value, in words for messages."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "binary"}
    return names.get(type(value), f"a {type(value).__name__}")
