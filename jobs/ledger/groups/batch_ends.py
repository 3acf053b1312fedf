"""The end of a batch: found when its jobs have ended, set to `finalizing`, then ended with its output files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, exists, or_, select
from sqlmodel import Session, col

from jobs.data.drafts import StoredObject
from jobs.data.store_keys import batch_prefix
from jobs.db.database import Database
from jobs.db.moves import move
from jobs.db.states import LIVE_JOB_STATES, BatchState, JobState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.ledger.groups.batches import OUTPUT_PURPOSE, ROWS_PURPOSE, BatchCounts, lock, stored_file
from jobs.ledger.records import announcements

# States of jobs that must still be cancelled if their batch was cancelled.
_UNCANCELLED = (JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """How a batch ended, and its output files."""

    state: BatchState
    counts: BatchCounts
    output: StoredObject | None
    """The responses; None if no line has one."""
    errors_file: StoredObject | None
    """The errors; None if every line has a response."""
    input_tokens: int = 0
    output_tokens: int = 0
    errors: Sequence[Mapping[str, Any]] = ()


def to_finish(session: Session) -> list[str]:
    """List batches whose jobs have all ended, and cancelled batches whose jobs are not cancelled yet, oldest first."""
    return list(session.scalars(_TO_FINISH))


def _build_to_finish() -> Select[str]:
    of_batch = col(Job.batch_id) == col(Batch.id)
    live = exists().where(of_batch, col(Job.state).in_(LIVE_JOB_STATES))
    uncancelled = exists().where(of_batch, col(Job.state).in_(_UNCANCELLED))
    unfinished = (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING)
    is_cancelling = col(Batch.state) == BatchState.CANCELLING
    ready = or_(col(Batch.state).in_(unfinished) & ~live, is_cancelling & uncancelled)
    return select(col(Batch.id)).where(ready).order_by(col(Batch.created_at))


_TO_FINISH = _build_to_finish()
"""Built once: the scheduler asks at every wake-up, and building takes longer than running."""


def begin_finalizing(db: Database, batch_id: str) -> Batch:
    """Set a batch whose jobs have ended to `finalizing`; a batch that is `finalizing` or `cancelling` does not change.

    Raises:
        Conflict: The batch has ended.
    """
    with db.write() as tx:
        batch = lock(tx, batch_id, BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING)
        if batch.state == BatchState.IN_PROGRESS:
            move(batch, BatchState.FINALIZING)
            batch.finalizing_at = tx.time()
            tx.record(batch_id, "batch.finalizing")
        return batch


def end(db: Database, batch_id: str, outcome: BatchOutcome, *, default_seconds: float) -> None:
    """End a batch, with its output files.

    Args:
        default_seconds: Time until the output files expire, if the client did not set one.

    Raises:
        Conflict: Another scheduler has ended the batch.
    """
    is_cancel = outcome.state == BatchState.CANCELLED
    with db.write() as tx:
        batch = lock(tx, batch_id, BatchState.CANCELLING if is_cancel else BatchState.FINALIZING)
        now = tx.time()
        expires_at = now + (batch.output_seconds or default_seconds)
        for file_id, content in ((batch.output_file_id, outcome.output), (batch.error_file_id, outcome.errors_file)):
            if file_id is not None and content is not None:
                tx.add(stored_file(batch, file_id, OUTPUT_PURPOSE, content, now, expires_at=expires_at))
        batch.output_file_id = None if outcome.output is None else batch.output_file_id
        batch.error_file_id = None if outcome.errors_file is None else batch.error_file_id
        move(batch, outcome.state)
        setattr(batch, f"{outcome.state}_at", now)
        batch.num_completed, batch.num_failed = outcome.counts.completed, outcome.counts.failed
        batch.input_tokens, batch.output_tokens = outcome.input_tokens, outcome.output_tokens
        batch.errors = [dict(error) for error in outcome.errors] or None
        announcements.announce_batch(tx, batch)


def forget_rows(db: Database, batch_id: str) -> None:
    """Delete the records of the files that an ended batch's input was split into, after their objects were deleted."""
    with db.write() as tx:
        rows = (
            col(StoredFile.purpose) == ROWS_PURPOSE,
            col(StoredFile.key).startswith(batch_prefix(batch_id), autoescape=True),
        )
        tx.execute(delete(StoredFile).where(*rows))
