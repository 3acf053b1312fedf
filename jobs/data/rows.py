"""Row, Result and RowError: the currency of the data path, from a source through a runner into a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no output. A bad row is data: it never fails the chunk or the job around it."""

    code: str
    """Stable word for programs, such as `invalid_json_line`, `null_value`, `row_too_large`, `poison_row`."""
    message: str
    """One clear sentence for people."""
    line: int | None = None
    """1-based line of the input file (its physical line, blank lines counted), where the source has lines."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a result line: `code`, `message`, and `line` where known."""
        fields: dict[str, Any] = {"code": self.code, "message": self.message}
        return fields if self.line is None else {**fields, "line": self.line}


@dataclass(frozen=True, slots=True)
class Row:
    """One input record. `error` is set when the source could not make values of it; the row is counted all the same."""

    row_index: int
    """0-based position in the whole input, over all files."""
    key: str | None
    """The user's own identifier of the row, where `input.key` names a column."""
    values: Mapping[str, Any]
    """The task's inputs by the task's own names (`text`, `text_pair`, ...), already mapped from the user's columns."""
    error: RowError | None = None
    line: int | None = field(default=None, compare=False)
    """As in `RowError`: where the row stands, for what is found wrong with it later. Not a part of what it is."""


@dataclass(frozen=True, slots=True)
class Result:
    """One output record: an output or an error, never both, never none."""

    row_index: int
    key: str | None
    output: Any | None = None
    """A JSON value in the pipeline's own shape, or for vectors a one-dimensional float32 numpy array."""
    error: RowError | None = None
    num_tokens: int = 0
    """Tokens the model saw for this row, padding not counted."""

    def __post_init__(self) -> None:
        if (self.output is None) == (self.error is None):
            raise ValueError(f"row {self.row_index}: a result has an output or an error, exactly one of them")
