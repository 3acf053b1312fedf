"""Row, Result and RowError: the values that travel from a source through a runner into a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RowErrorCode(StrEnum):
    """Stable, machine-readable reason why a row failed; `ops/docs/reference.md` explains each."""

    # errors that the client can fix
    INVALID_JSON_LINE = "invalid_json_line"
    NOT_AN_OBJECT = "not_an_object"
    INVALID_CSV_ROW = "invalid_csv_row"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_ENCODING = "invalid_encoding"
    INVALID_VALUE = "invalid_value"
    INVALID_KEY = "invalid_key"
    MISSING_COLUMN = "missing_column"
    NULL_VALUE = "null_value"
    WRONG_TYPE = "wrong_type"
    ROW_TOO_LARGE = "row_too_large"
    INVALID_IMAGE = "invalid_image"
    INVALID_AUDIO = "invalid_audio"
    MISSING_FILE = "missing_file"
    FORBIDDEN_PATH = "forbidden_path"
    URL_NOT_ALLOWED = "url_not_allowed"
    INVALID_TEXT = "invalid_text"
    EMPTY_ROW = "empty_row"
    EMPTY_INPUT = "empty_input"
    TOO_MANY_INPUTS = "too_many_inputs"
    ROW_TOO_LONG = "row_too_long"
    INVALID_PARAMETER = "invalid_parameter"
    INVALID_MESSAGES = "invalid_messages"
    NO_CHAT_TEMPLATE = "no_chat_template"
    UNKNOWN_TOKEN = "unknown_token"
    NO_MASK = "no_mask"
    # errors caused by the model or the machine
    NOT_A_NUMBER = "not_a_number"
    NO_OUTPUT = "no_output"
    OUT_OF_MEMORY = "out_of_memory"
    ROW_FAILED = "row_failed"
    POISON_ROW = "poison_row"

    @property
    def is_clients(self) -> bool:
        """Whether the client can fix the row."""
        return self not in _OF_THE_MACHINE


_OF_THE_MACHINE = frozenset(
    {
        RowErrorCode.NOT_A_NUMBER,
        RowErrorCode.NO_OUTPUT,
        RowErrorCode.OUT_OF_MEMORY,
        RowErrorCode.ROW_FAILED,
        RowErrorCode.POISON_ROW,
    }
)
_OF_ROWS = {code.value: code for code in RowErrorCode}


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no output. A bad row is data: it never fails the chunk or the job around it."""

    code: str
    """A `RowErrorCode`, or the code of the error that failed the row's whole chunk."""
    message: str
    """One clear sentence for the user."""
    line: int | None = None
    """1-based physical line in the input file, counting blank lines; None if the format has no lines."""

    @property
    def is_clients(self) -> bool:
        """Whether the client can fix the row."""
        return self.code in _OF_ROWS and _OF_ROWS[self.code].is_clients

    def to_json(self) -> dict[str, Any]:
        """The JSON object of a result line: `code`, `message` and, if it is known, `line`."""
        fields: dict[str, Any] = {"code": self.code, "message": self.message}
        return fields if self.line is None else {**fields, "line": self.line}


@dataclass(frozen=True, slots=True)
class Row:
    """One input record. `error` is set when the source could not parse it; such a row still has its index."""

    row_index: int
    """0-based position in the whole input, over all files."""
    key: str | None
    """The user's identifier of the row; None if the job has no `input.key` column."""
    values: Mapping[str, Any]
    """The task's inputs by input name (`text`, `text_pair`, ...), already mapped from the user's columns."""
    error: RowError | None = None
    line: int | None = field(default=None, compare=False)
    """1-based physical line, as in `RowError`, for errors that are found later. Two equal rows may differ in it."""


@dataclass(frozen=True, slots=True)
class Result:
    """One output record: it has either an output or an error, never both and never neither."""

    row_index: int
    key: str | None
    output: Any | None = None
    """A JSON value in the pipeline's format; for vectors, a one-dimensional float32 NumPy array."""
    error: RowError | None = None
    num_tokens: int = 0
    """Number of tokens that the model processed for this row, without padding."""

    def __post_init__(self) -> None:
        if (self.output is None) == (self.error is None):
            raise ValueError(f"row {self.row_index}: a result has an output or an error, exactly one of them")
