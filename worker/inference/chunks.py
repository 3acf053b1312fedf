"""A claimed chunk on its way through the pipeline, and the groups of batches that it is split into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.data.rows import Result, Row, RowError, RowErrorCode
from jobs.ledger.chunks import Claim
from worker.device import Moment, tensor_bytes
from worker.models.task_model import Counted, Encoded


class OpenChunk:
    """A chunk whose results are being collected. Several stages may use it, each for other rows."""

    def __init__(self, claim: Claim, rows: Sequence[Row]) -> None:
        """
        Args:
            claim: The claim, with the chunk's range of rows.
            rows: One for each row of the range, in order. A row with an error gets its result immediately.
        """
        self.claim = claim
        self._results: list[Result | None] = [None] * len(rows)
        self.rows = [row for row in rows if self._computable(row)]
        """Rows to encode."""

    def _computable(self, row: Row) -> bool:
        error = row.error or self.claim.row_error
        if error is not None:
            self.set_result(row, error)
        return error is None

    @property
    def start_row(self) -> int:
        """Index of the chunk's first row, which identifies it within the job."""
        return self.claim.start_row

    @property
    def num_rows(self) -> int:
        """Number of rows in the chunk."""
        return self.claim.stop_row - self.claim.start_row

    def set_result(self, row: Row, output: Any | RowError, num_tokens: int = 0) -> None:
        """Set a row's result.

        Args:
            output: What `TaskModel.decode` returned for the row.
            num_tokens: The length by which the row was put into a batch; a `Counted` output replaces it.
        """
        if isinstance(output, Counted):
            output, num_tokens = output.output, output.num_tokens
        if output is None:
            output = RowError(RowErrorCode.NO_OUTPUT, "the model returned no output for this row")
        failed = isinstance(output, RowError)
        if failed and output.line is None:  # a task knows only the row; its reader knows the line
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
            RuntimeError: A row has no result, which would be a bug in the pipeline.
        """
        results = [result for result in self._results if result is not None]
        if len(results) != len(self._results):
            raise RuntimeError(f"chunk {self.start_row}: {len(self._results) - len(results)} rows without a result")
        return results


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Batches of one chunk that are computed at the same time; none if no row of the chunk can be computed."""

    chunk: OpenChunk
    batches: Sequence[Sequence[Encoded]]
    collated: Sequence[Any | None]
    """For each batch what `TaskModel.collate` returned; None if it failed or was not called yet."""
    is_last: bool
    """Whether this is the chunk's last group."""

    @property
    def num_bytes(self) -> int:
        """Memory of the rows' features, as far as they are large."""
        return sum(one.num_bytes for batch in self.batches for one in batch)


@dataclass(frozen=True, slots=True)
class Piece:
    """The output of one forward pass over some rows, or the error that they share."""

    members: Sequence[Encoded]
    outputs: Any | None
    """What `TaskModel.forward` returned, still on the device."""
    started: Moment | None = None
    """The point in the device's work at which the pass began."""
    moment: Moment | None = None
    """The point at which the outputs are computed."""
    share: float = 1.0
    """The part of the device that the pass used: passes that ran at the same time on a CPU share its threads."""
    error: RowError | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the outputs."""
        return tensor_bytes(self.outputs)


@dataclass(frozen=True, slots=True)
class ComputedGroup:
    """The batches of a group with their outputs, on their way to be decoded."""

    group: BatchGroup
    """The rows. Their features are kept, because rows whose outputs cannot be decoded are computed again."""
    pieces: Sequence[Piece]
    """The outputs, in pieces that together contain each row of the group once."""

    @property
    def num_bytes(self) -> int:
        """Memory of the features and outputs."""
        return self.group.num_bytes + sum(piece.num_bytes for piece in self.pieces)
