"""A claimed chunk on its way through the pipeline, and the batches it is cut into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.data.rows import Result, Row, RowError, RowErrorCode
from jobs.ledger.chunks import Claim
from worker.device import Moment
from worker.models.task_model import Counted, Encoded


class OpenChunk:
    """A chunk whose results are being gathered. One stage of the pipeline has it at a time."""

    def __init__(self, claim: Claim, rows: Sequence[Row]) -> None:
        """
        Args:
            claim: its range.
            rows: one for each row of the range, in order. Those with an error have their result at once.
        """
        self.claim = claim
        self.encoded: Sequence[Encoded] = ()
        """Rows that are to be computed, in row order, once they are tokenized."""
        self._results: list[Result | None] = [None] * len(rows)
        self.rows = [row for row in rows if self._computable(row)]
        """Rows to tokenize."""

    def _computable(self, row: Row) -> bool:
        error = row.error or self.claim.verdict
        if error is not None:
            self.settle(row, error)
        return error is None

    @property
    def start_row(self) -> int:
        """First row of the chunk, its name within the job."""
        return self.claim.start_row

    @property
    def num_rows(self) -> int:
        """Rows in the chunk."""
        return self.claim.stop_row - self.claim.start_row

    def settle(self, row: Row, output: Any | RowError, num_tokens: int = 0) -> None:
        """Set a row's result.

        Args:
            output: what `TaskModel.decode` made of it.
            num_tokens: what the row was packed by; `Counted` knows better.
        """
        if isinstance(output, Counted):
            output, num_tokens = output.output, output.num_tokens
        if output is None:
            output = RowError(RowErrorCode.NO_OUTPUT, "the model gave no output for this row")
        failed = isinstance(output, RowError)
        if failed and output.line is None:  # a task knows the row only, its reader the line
            output = replace(output, line=row.line)
        self._results[row.row_index - self.claim.start_row] = Result(
            row_index=row.row_index,
            key=row.key,
            output=None if failed else output,
            error=output if failed else None,
            num_tokens=num_tokens,
        )

    def results(self) -> list[Result]:
        """One result for each row, in row order.

        Raises:
            RuntimeError: a row was left out, which would be a fault of the pipeline.
        """
        results = [result for result in self._results if result is not None]
        if len(results) != len(self._results):
            raise RuntimeError(f"chunk {self.start_row}: {len(self._results) - len(results)} rows without a result")
        return results


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one chunk that go through the model together; none for a chunk without a computable row."""

    chunk: OpenChunk
    members: Sequence[Encoded]
    collated: Any | None
    """What `TaskModel.collate` made of them, or None where it could not and is to be tried again row by row."""
    is_last: bool
    """Whether the chunk is complete with this batch."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward pass made of some rows, or the error that they share."""

    members: Sequence[Encoded]
    outputs: Any | None
    """As `TaskModel.forward` left them, on the device."""
    moment: Moment | None
    """When they are computed."""
    error: RowError | None = None
