"""A project's usage of its limits, and reservations within them, made in the transaction that uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, literal, or_, select
from sqlmodel import col

from jobs.db.states import BatchState, JobState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.db.transaction import Transaction
from jobs.errors import QueueFull, StorageFull, TooManyRows
from jobs.ledger.accounts import totals
from jobs.ledger.accounts.uploads import PURPOSES
from jobs.specs.inference import INFERENCE

_LONGEST_WAIT_SECONDS = 30  # OpenAI's SDK obeys `Retry-After` up to 60 s
_GUESSED_WAIT_SECONDS = 5  # if the rate is unknown


_IS_UNCOUNTED = (  # in the words of the index `jobs_uncounted`
    col(Job.kind) == literal(INFERENCE, literal_execute=True),
    col(Job.state) == literal(JobState.VALIDATING, literal_execute=True),
    col(Job.num_rows) == literal(0, literal_execute=True),
)


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """The room in a project's queue that a submission needs."""

    limit: int
    """The project's limit `queued_rows`."""
    num_rows: int | None
    """Rows in the submission. None if counting would be slow; such a submission is admitted alone."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A project's unfinished work."""

    num_rows: int
    """Number of unfinished rows in all jobs and batches whose rows are counted."""
    is_uncounted: bool
    """Whether it has a job or batch whose rows are not counted yet."""
    rows_per_second: float
    """Average rate of its running jobs; 0 if none is running."""


def queue_of(tx: Transaction, project: str) -> Queue:
    """Read a project's queue. A batch counts by its lines while it is validated, then by its jobs; trainings do not.

    This takes no longer with more waiting jobs.
    """
    left = totals.rows_left(project).subquery()
    running = select(_sum(Job.num_done), func.min(Job.started_at), tx.now()).where(
        totals.IS_AT_WORK, col(Job.project) == project, col(Job.state) == JobState.RUNNING, col(Job.kind) == INFERENCE
    )
    uncounted = exists().where(col(Job.project) == project, col(Job.ready_at) <= tx.now(), *_IS_UNCOUNTED)
    of_batches = select(_sum(Batch.num_lines), _count(col(Batch.num_lines) == 0)).where(
        col(Batch.project) == project, col(Batch.state) == BatchState.VALIDATING
    )
    num_rows = tx.scalar(select(_sum(left.c.num_rows)))
    num_done, started_at, now = tx.execute(running).one()
    num_lines, num_unread = tx.execute(of_batches).one()
    seconds = 0.0 if started_at is None else now - started_at
    return Queue(
        num_rows=int(num_rows or 0) + int(num_lines),
        is_uncounted=bool(num_unread) or bool(tx.scalar(select(uncounted))),
        rows_per_second=int(num_done) / seconds if seconds > 0 else 0.0,
    )


def reserve_rows(tx: Transaction, project: str, wanted: RowsWanted) -> None:
    """Check that a submission fits into its project's queue. The caller inserts it in the same transaction.

    Submissions of one project wait for each other here, so that two of them never use the same room.

    Raises:
        QueueFull: See `check_room`.
        TooManyRows: See `check_room`.
    """
    tx.take_turn(f"queue/{project}")
    check_room(tx, project, wanted)


def check_room(tx: Transaction, project: str, wanted: RowsWanted) -> None:
    """Check that a submission fits into its project's queue, without reserving anything.

    Raises:
        QueueFull: The submission does not fit now.
        TooManyRows: The submission would not fit into an empty queue.
    """
    if wanted.num_rows is not None and wanted.num_rows > wanted.limit:
        raise too_many_rows(project, wanted.limit)
    queue = queue_of(tx, project)
    if queue.is_uncounted:
        message = (
            f"project '{project}' has a submission whose rows are still being counted; try again when that is done"
        )
        raise QueueFull(message, retry_after_seconds=_GUESSED_WAIT_SECONDS)
    excess = queue.num_rows + (wanted.num_rows or 1) - wanted.limit
    if excess > 0:
        added = "" if wanted.num_rows is None else f", and this submission has {wanted.num_rows} more"
        raise QueueFull(
            f"project '{project}' has {queue.num_rows} rows in the queue{added}; its limit is {wanted.limit} "
            "(queued_rows). Try again when some are done",
            retry_after_seconds=seconds_until(excess, per_second=queue.rows_per_second),
        )


def too_many_rows(project: str, limit: int, *, param: str = "input.path") -> TooManyRows:
    """Make the error of a submission that would not fit into an empty queue."""
    return TooManyRows(
        f"{param}: has more than {limit} rows, which the queue of project '{project}' can never hold (queued_rows); "
        "split the input",
        param=param,
    )


def seconds_until(num_rows: int, *, per_second: float) -> int:
    """Estimate when this number of rows will be done, in whole seconds, at most what a client will wait."""
    if per_second <= 0:
        return _GUESSED_WAIT_SECONDS
    return max(1, min(math.ceil(num_rows / per_second), _LONGEST_WAIT_SECONDS))


# -- uploads -------------------------------------------------------------------------------------------------------


def uploaded_bytes(tx: Transaction, project: str) -> int:
    """Return the bytes of a project's uploads that have not expired. Files written by batches do not count."""
    return int(tx.scalar(select(_sum(StoredFile.num_bytes)).where(*_kept(tx, project))) or 0)


def reserve_bytes(tx: Transaction, project: str, *, limit: int, num_bytes: int) -> None:
    """Check that an upload fits into its project's storage. The caller inserts it in the same transaction.

    Raises:
        StorageFull: The upload does not fit.
    """
    tx.take_turn(f"uploads/{project}")
    if uploaded_bytes(tx, project) + num_bytes > limit:
        raise storage_full(tx, project, limit=limit)


def storage_full(tx: Transaction, project: str, *, limit: int) -> StorageFull:
    """Make the error of an upload that does not fit into its project's storage."""
    first = tx.scalar(select(func.min(StoredFile.expires_at)).where(*_kept(tx, project)))
    seconds = _LONGEST_WAIT_SECONDS if first is None else math.ceil(first - tx.time())
    return StorageFull(
        f"file: with this file, the uploads of project '{project}' would exceed {limit} bytes (upload_bytes); delete "
        "some, or wait until they expire",
        param="file",
        retry_after_seconds=max(1, min(seconds, _LONGEST_WAIT_SECONDS)),
    )


def _kept(tx: Transaction, project: str) -> tuple[ColumnElement[bool], ...]:
    expires_at = col(StoredFile.expires_at)
    return (
        col(StoredFile.project) == project,
        col(StoredFile.purpose).in_(PURPOSES),
        or_(expires_at.is_(None), expires_at > tx.now()),
    )


def _sum(values: Any) -> ColumnElement[int]:
    return func.coalesce(func.sum(values), 0)


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return _sum(case((condition, 1), else_=0))
