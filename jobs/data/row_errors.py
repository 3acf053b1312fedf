"""Decide whether a job has too many row errors, or whether its first rows all failed for the same reason.

These are pure functions.

Without `max_row_errors`, a job fails when its first `FIRST_ROWS` rows (or all rows of a smaller job) all failed with
the same error, because then the job is wrong and not its rows. These are the first rows of the input, not the first
ones to be recorded, so the verdict does not depend on slots or crashes. A job whose only row fails is such a job, too.
With `max_row_errors`, only that limit decides. Jobs of a batch have no limit: the batch API promises a response or an
error for each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jobs.data.rows import Result
from jobs.errors import TooManyRowErrors
from jobs.messages import short
from jobs.specs.fields import parse_row_error_limit

FIRST_ROWS = 1000
"""Number of rows at the start of the input that decide about a job without `max_row_errors`."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_COMPARED_CHARACTERS = 2000  # the part of a message that is compared
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that failed, and why."""

    row: int
    """0-based index of the row in the input."""
    code: str
    message: str
    kind: str
    """The message without names, paths and numbers; equal for errors that have the same cause."""


@dataclass(frozen=True, slots=True)
class RowErrors:
    """Summary of a job's row errors, updated as its results are recorded."""

    num_first: int = 0
    """Number of the first `FIRST_ROWS` rows that are recorded."""
    is_mixed: bool = False
    """Whether the recorded first rows did not all fail for the same reason."""
    first: FailedRow | None = None
    """The failed row with the lowest index so far."""


def note(before: RowErrors, results: Sequence[Result]) -> RowErrors:
    """The summary after these results are recorded, too."""
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
        kinds.add((before.first.code, before.first.kind))  # the lowest failed row is one of the first rows
    is_mixed = before.is_mixed or None in kinds or len(kinds) > 1
    return replace(after, num_first=before.num_first + len(first_rows), is_mixed=is_mixed)


def merge(parts: Iterable[RowErrors]) -> RowErrors:
    """The summary of several sets of results that were summarized separately."""
    known = list(parts)
    failed = [part.first for part in known if part.first is not None]
    with_first_rows = [part for part in known if part.num_first]
    kinds = {(part.first.code, part.first.kind) for part in with_first_rows if part.first is not None}
    return RowErrors(
        num_first=sum(part.num_first for part in with_first_rows),
        is_mixed=any(part.is_mixed for part in with_first_rows) or len(kinds) > 1,
        first=min(failed, key=lambda one: one.row, default=None),
    )


def verdict(limit: str | None, noted: RowErrors, *, num_rows: int, num_failed: int) -> TooManyRowErrors | None:
    """The error that fails the job, or None if the job continues.

    Args:
        limit: The job's `max_row_errors` as text; None if it has no limit.
        noted: Summary of all recorded results.
        num_rows: Number of rows of the whole input.
        num_failed: Number of recorded rows with a row error.
    """
    if noted.first is None:
        return None
    example = f"row {noted.first.row}: {noted.first.code}: {noted.first.message}"
    if limit is not None:
        most = parse_row_error_limit(int(limit) if limit.isdigit() else limit)
        if num_failed > (most if isinstance(most, int) else most * num_rows):
            return TooManyRowErrors(f"{num_failed} of {num_rows} rows failed, but max_row_errors is {limit}; {example}")
        return None
    if noted.is_mixed or noted.num_first < min(FIRST_ROWS, num_rows):
        return None
    which = f"all {num_rows} rows" if noted.num_first == num_rows else f"the first {noted.num_first} rows"
    summary = f"{which} failed with the same error" if num_rows > 1 else "the only row failed"
    return TooManyRowErrors(f"{summary}; {example} (set max_row_errors: '100%' to let such a job complete)")


def _kind(message: str) -> str:
    """The words of a message without quoted names, paths and numbers; equal for messages with the same cause."""
    words = _QUOTED.sub("'", message[:_COMPARED_CHARACTERS]).split()
    return short(_NUMBER.sub("#", " ".join("/" if "/" in word else word for word in words)))
