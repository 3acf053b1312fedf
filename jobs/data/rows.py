"""Row, Result and RowError: the values that travel from a source through a runner into a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RowErrorCode(StrEnum):
    """Stable, machine-readable reason why a row failed; `ops/docs/reference.md` explains each."""

    # errors that the client can fix
    INVALID_JSON_LINE = "invalid_json_line"  # the line, or the item of a JSON array, is not JSON
    NOT_AN_OBJECT = "not_an_object"  # the line or item is JSON, but not an object
    INVALID_CSV_ROW = "invalid_csv_row"  # not valid CSV, or not as many cells as the header
    INVALID_UTF8 = "invalid_utf8"  # the row is not valid UTF-8
    INVALID_ENCODING = "invalid_encoding"  # the row is not valid in `input.encoding`
    INVALID_VALUE = "invalid_value"  # a value that cannot be read: a date after 9999, NaN in JSON, wrong base64
    INVALID_KEY = "invalid_key"  # the key cannot be stored exactly: a too large number, or a zero character
    MISSING_COLUMN = "missing_column"  # the row does not have the column
    NULL_VALUE = "null_value"  # the cell is null
    WRONG_TYPE = "wrong_type"  # the cell has a type that the task does not accept, usually not text
    ROW_TOO_LARGE = "row_too_large"  # above `max_row_bytes`, `max_image_pixels` or `max_audio_seconds`
    INVALID_IMAGE = "invalid_image"  # the image cannot be decoded
    INVALID_AUDIO = "invalid_audio"  # the audio cannot be decoded, or a sample is not a finite number
    INVALID_VIDEO = "invalid_video"  # the video cannot be decoded
    MISSING_FILE = "missing_file"  # the row names a file that does not exist or cannot be read
    FORBIDDEN_PATH = "forbidden_path"  # the row names a file outside `input_roots`
    URL_NOT_ALLOWED = "url_not_allowed"  # the row has a URL where a path or data is needed
    INVALID_TEXT = "invalid_text"  # the tokenizer rejects the text
    EMPTY_ROW = "empty_row"  # the text has no tokens
    EMPTY_INPUT = "empty_input"  # with `inputs: any`, the list is empty
    TOO_MANY_INPUTS = "too_many_inputs"  # with `inputs: any`, the list has too many entries
    ROW_TOO_LONG = "row_too_long"  # more tokens than the model accepts, and truncation is off or impossible
    INVALID_PARAMETER = "invalid_parameter"  # the row's own `parameters` are invalid
    INVALID_MESSAGES = "invalid_messages"  # a chat message is invalid, or the chat template rejects the chat
    NO_CHAT_TEMPLATE = "no_chat_template"  # the row is a chat, but the model has no chat template
    UNKNOWN_TOKEN = "unknown_token"  # the tokenizer made a token that the model does not have
    NO_MASK = "no_mask"  # `fill-mask`: the text has no mask token
    # errors caused by the model or the machine
    NOT_A_NUMBER = "not_a_number"  # the model's output is not finite
    NO_OUTPUT = "no_output"  # the model returned nothing for the row
    OUT_OF_MEMORY = "out_of_memory"  # the row alone does not fit in the device's memory
    ROW_FAILED = "row_failed"  # the model raised an error for this row alone
    POISON_ROW = "poison_row"  # computing the row killed the runner several times

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
            raise ValueError(f"row {self.row_index}: a result must have either an output or an error")
