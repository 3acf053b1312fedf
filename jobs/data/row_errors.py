"""How many row errors a job may have, and whether its first rows all failed alike. Pure.

Without `max_row_errors` a job fails when its first rows, `FIRST_ROWS` of them or all of a smaller job, hold nothing
but one and the same error: then something about the job is wrong, not its rows. The rows are the first ones of the
input, not those that happen to be recorded first, so the verdict depends on neither slots nor crashes. A job of one row
that fails is such a job too. With `max_row_errors` that limit alone decides. Jobs of a batch have no limit: in that
contract each line has its own answer or error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.data.rows import Result
from jobs.errors import TooManyRowErrors
from jobs.messages import short
from jobs.specs.fields import parse_row_error_limit

FIRST_ROWS = 1000
"""Rows that decide about a job without `max_row_errors`; fewer of a smaller job."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_COMPARED_CHARACTERS = 2000  # of a message
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that failed, and why."""

    row: int
    """Its index in the input."""
    code: str
    message: str
    kind: str
    """What its message has in common with those of the same cause."""


@dataclass(frozen=True, slots=True)
class RowErrors:
    """What is remembered of a job's row errors while its results are recorded."""

    num_first: int = 0
    """Recorded rows among the first ones."""
    is_mixed: bool = False
    """Whether the first rows did not all fail alike."""
    first: FailedRow | None = None
    """The lowest row that failed so far."""


def note(before: RowErrors, results: Sequence[Result]) -> RowErrors:
    """What is remembered once these results are recorded too."""
    failed = [result for result in results if result.error is not None]
    after = before
    if failed:
        lowest = min(failed, key=lambda result: result.row_index)
        if before.first is None or lowest.row_index < before.first.row:
            assert lowest.error is not None
            code, message = lowest.error.code, lowest.error.message
            after = replace(after, first=FailedRow(lowest.row_index, code, short(message), _kind(message)))
    first_rows = [result for result in results if result.row_index < FIRST_ROWS]
    if not first_rows:
        return after
    kinds = {
        None if result.error is None else (result.error.code, _kind(result.error.message)) for result in first_rows
    }
    if before.num_first and not before.is_mixed and before.first is not None:
        kinds.add((before.first.code, before.first.kind))  # of one of the first rows, as none is lower
    is_mixed = before.is_mixed or None in kinds or len(kinds) > 1
    return replace(after, num_first=before.num_first + len(first_rows), is_mixed=is_mixed)


def verdict(limit: str | None, noted: RowErrors, *, num_rows: int, num_failed: int) -> TooManyRowErrors | None:
    """The error that a job fails with, or None where it goes on.

    Args:
        limit: the job's `max_row_errors` as a text, where it has one.
        noted: What is remembered of all results that are recorded.
        num_rows: Number of rows of the whole input.
        num_failed: Number of recorded rows with a row error.
    """
    if noted.first is None:
        return None
    example = f"row {noted.first.row}: {noted.first.code}: {noted.first.message}"
    if limit is not None:
        most = parse_row_error_limit(int(limit) if limit.isdigit() else limit)
        if num_failed > (most if isinstance(most, int) else most * num_rows):
            return TooManyRowErrors(
                f"{num_failed} of {num_rows} rows failed, more than max_row_errors: {limit} allows; {example}"
            )
        return None
    if noted.is_mixed or noted.num_first < min(FIRST_ROWS, num_rows):
        return None
    which = f"all {num_rows} rows" if noted.num_first == num_rows else f"the first {noted.num_first} rows"
    said = f"{which} failed alike" if num_rows > 1 else "the only row failed"
    return TooManyRowErrors(f"{said}; {example} (max_row_errors: '100%' lets such a job complete)")


def _kind(message: str) -> str:
    """What is equal in two messages of one cause: the words, without quoted names, paths and numbers."""
    words = _QUOTED.sub("'", message[:_COMPARED_CHARACTERS]).split()
    return short(_NUMBER.sub("#", " ".join("/" if "/" in word else word for word in words)))
