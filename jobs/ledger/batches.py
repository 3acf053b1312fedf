"""Batch verbs: create, find, accept, refuse, cancel; its end is in `batch_ends`.

A batch is the lines of one file, carried out by one job for each model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.data.store import StoredObject
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move
from jobs.db.states import BatchState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import Conflict, NotFound
from jobs.ledger import announcements, paging, usage
from jobs.ledger import jobs as job_ledger
from jobs.ledger.usage import RowsWanted
from jobs.specs.inference import JobSpec

ROWS_PURPOSE = "batch_rows"
"""Purpose of the files that a batch's input is split into; no user sees or names them."""
OUTPUT_PURPOSE = "batch_output"
_RETRY_SECONDS = 600.0  # within which a client's retry of a create finds what the first try made


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a client asks for, checked."""

    endpoint: str
    input_file_id: str
    completion_window: str
    window_seconds: int
    digest: str
    """Digest of the whole request."""
    labels: Mapping[str, str] | None = None
    output_seconds: int | None = None
    retry_of: str | None = None


@dataclass(frozen=True, slots=True)
class BatchPart:
    """The lines of a batch that one job carries out."""

    spec: JobSpec
    """Its input is `file:<file_id>`."""
    file_id: str
    rows: StoredObject
    num_rows: int
    pins: Pins | None = None
    """What the job computes with, as that was when the lines were read."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What the lines of a batch came to."""

    num_lines: int
    model: str | None
    """Model name, if all lines use the same one."""
    parts: Sequence[BatchPart]
    num_carried: int = 0
    carried: StoredObject | None = None
    """Answers taken over from the batch that this one retries."""


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The lines of a batch."""

    total: int
    completed: int
    failed: int


# -- making and finding --------------------------------------------------------------------------------------------


def create(
    db: Database,
    new: NewBatch,
    *,
    project: str,
    idempotency_key: str | None = None,
    is_retry: bool = False,
    wanted: RowsWanted | None = None,
) -> Batch:
    """Write a batch down as `validating`, once for all tries of one request.

    Args:
        idempotency_key: a repeated request with the same key gives the batch of the first one.
        is_retry: the client says that it tried before, so an equal request of the last ten minutes is that try.
        wanted: the room that it needs, where its project's queue has a limit.

    Raises:
        Conflict: the key was used for another request.
        QueueFull: there is no such room now.
        TooManyRows: there never will be.
    """
    key = None if idempotency_key is None else f"{project}/{idempotency_key}"
    try:
        with db.write() as tx:
            tx.take_turn(new.digest)  # of two tries at once the second waits until the first can be seen
            now = tx.time()
            before = _made_before(tx, new, project=project, key=key, since=now - _RETRY_SECONDS if is_retry else None)
            if before is not None:
                return before
            if wanted is not None:
                usage.reserve_rows(tx, project, wanted)
            batch = Batch(
                id=new_id("batch"),
                project=project,
                state=BatchState.VALIDATING,
                endpoint=new.endpoint,
                input_file_id=new.input_file_id,
                completion_window=new.completion_window,
                labels=None if new.labels is None else dict(new.labels),
                output_seconds=new.output_seconds,
                retry_of=new.retry_of,
                idempotency_key=key,
                digest=new.digest,
                num_lines=0 if wanted is None else wanted.num_rows or 0,
                created_at=now,
                expires_at=now + new.window_seconds,
            )
            tx.add(batch)
            tx.record(batch.id, "batch.created", endpoint=new.endpoint, file=new.input_file_id)
        return batch
    except IntegrityError:  # another request with the key was written between the look and the insertion
        with db.read() as tx:
            first = _made_before(tx, new, project=project, key=key, since=None)
        if first is None:
            raise
        return first


def get(session: Session, batch_id: str) -> Batch:
    """The batch.

    Raises:
        NotFound: there is none of this id.
    """
    batch = session.get(Batch, batch_id)
    if batch is None:
        raise NotFound(f"there is no batch '{batch_id}'")
    return batch


def list_batches(
    session: Session, *, project: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Batch], bool]:
    """A page of batches, newest first; their errors are not read with it.

    Args:
        project: whose batches; None for all.
        after: id of the last batch of the page before.

    Returns:
        The batches, and whether there are more after them.

    Raises:
        NotFound: there is no batch `after`.
    """
    conditions = [] if project is None else [col(Batch.project) == project]
    last = None if after is None else get(session, after)
    return paging.page(session, Batch, *conditions, last=last, limit=limit, large=[Batch.errors])


def counts(session: Session, batch: Batch) -> BatchCounts:
    """How far a batch is: as it was when it ended, else as its jobs are now."""
    if batch.num_completed is not None and batch.num_failed is not None:
        return BatchCounts(batch.num_lines, batch.num_completed, batch.num_failed)
    sums = select(func.coalesce(func.sum(Job.num_done), 0), func.coalesce(func.sum(Job.num_failed), 0))
    done, failed = session.execute(sums.where(col(Job.batch_id) == batch.id)).one()
    return BatchCounts(batch.num_lines, batch.num_carried + int(done) - int(failed), int(failed))


def jobs_of(session: Session, batch_id: str) -> list[Job]:
    """A batch's jobs in the order of their making."""
    return list(session.scalars(select(Job).where(col(Job.batch_id) == batch_id).order_by(col(Job.id))))


def to_take_in(session: Session) -> list[str]:
    """The batches that are validating, oldest first."""
    validating = select(col(Batch.id)).where(col(Batch.state) == BatchState.VALIDATING)
    return list(session.scalars(validating.order_by(col(Batch.created_at))))


# -- the way of a batch --------------------------------------------------------------------------------------------


def accept(db: Database, batch_id: str, plan: BatchPlan) -> None:
    """Take a validating batch to `in_progress`, with its jobs.

    Raises:
        Conflict: it is not validating any more.
    """
    with db.write() as tx:
        batch = lock(tx, batch_id, BatchState.VALIDATING)
        now = tx.time()
        stored = [(part.file_id, part.rows) for part in plan.parts]
        if plan.carried is not None:
            stored.append((new_id("file"), plan.carried))
        for file_id, content in stored:
            tx.add(stored_file(batch, file_id, ROWS_PURPOSE, content, now, expires_at=None))
        for part in plan.parts:
            job_ledger.add(
                tx,
                part.spec,
                project=batch.project,
                batch_id=batch_id,
                deadline_at=batch.expires_at,
                num_rows=part.num_rows,
                pins=part.pins,
            )
        move(batch, BatchState.IN_PROGRESS)
        batch.in_progress_at, batch.num_lines, batch.model = now, plan.num_lines, plan.model
        batch.num_carried = plan.num_carried
        batch.carried_key = None if plan.carried is None else plan.carried.key
        batch.output_file_id, batch.error_file_id = new_id("file"), new_id("file")
        tx.record(batch_id, "batch.in_progress", lines=plan.num_lines, jobs=len(plan.parts))


def refuse(db: Database, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """Fail a validating batch; nothing of it was run.

    Args:
        errors: each `{code, message, line, param}`.

    Raises:
        Conflict: it is not validating any more.
    """
    with db.write() as tx:
        batch = lock(tx, batch_id, BatchState.VALIDATING)
        move(batch, BatchState.FAILED)
        batch.failed_at = tx.time()
        batch.errors = [dict(error) for error in errors]
        batch.num_completed = batch.num_failed = 0
        announcements.tell_batch(tx, batch)


def cancel(db: Database, batch_id: str) -> Batch:
    """Ask for a batch's end. Its jobs are cancelled, and what they finished is in the output file.

    A batch whose output files are being written already ends as it would have.

    Raises:
        NotFound: there is no such batch.
        Conflict: it has ended.
    """
    with db.write() as tx:
        batch = tx.scalar(select(Batch).where(col(Batch.id) == batch_id).with_for_update())
        if batch is None:
            raise NotFound(f"there is no batch '{batch_id}'")
        if batch.state.is_terminal:
            raise Conflict(f"batch {batch_id} has ended already: {batch.state}")
        now = tx.time()
        if batch.state == BatchState.VALIDATING:
            move(batch, BatchState.CANCELLED)
            batch.cancelling_at = batch.cancelled_at = now
            batch.num_completed = batch.num_failed = 0
            announcements.tell_batch(tx, batch)
        elif batch.state == BatchState.IN_PROGRESS:
            move(batch, BatchState.CANCELLING)
            batch.cancelling_at = now
            tx.record(batch_id, "batch.cancelling")
        return batch


# -- what they share -----------------------------------------------------------------------------------------------


def _made_before(
    session: Session, new: NewBatch, *, project: str, key: str | None, since: float | None
) -> Batch | None:
    if key is not None:
        batch = session.scalar(select(Batch).where(col(Batch.idempotency_key) == key))
        if batch is not None and batch.digest != new.digest:
            raise Conflict("this Idempotency-Key was used for another batch before", param="Idempotency-Key")
        return batch
    if since is None:
        return None
    equal = (col(Batch.digest) == new.digest, col(Batch.project) == project, col(Batch.created_at) >= since)
    alive = col(Batch.state).not_in((BatchState.CANCELLING, BatchState.CANCELLED))  # its client has had the answer
    return session.scalar(select(Batch).where(*equal, alive).order_by(col(Batch.created_at).desc()).limit(1))


def lock(session: Session, batch_id: str, *expected: BatchState) -> Batch:
    """Hold the batch's row, so that nobody else changes its state meanwhile."""
    batch = session.scalar(select(Batch).where(col(Batch.id) == batch_id).with_for_update())
    if batch is None or batch.state not in expected:
        now = "gone" if batch is None else batch.state
        raise Conflict(f"batch {batch_id} is {now}, not {' or '.join(expected)}")
    return batch


def stored_file(
    batch: Batch, file_id: str, purpose: str, content: StoredObject, now: float, *, expires_at: float | None
) -> StoredFile:
    """The record of a file that a batch is split into or that it made."""
    kind = {OUTPUT_PURPOSE: "error" if file_id == batch.error_file_id else "output"}.get(purpose, "rows")
    return StoredFile(
        id=file_id,
        filename=f"{batch.id}_{kind}.jsonl",
        purpose=purpose,
        key=content.key,
        num_bytes=content.num_bytes,
        sha256=content.sha256,
        project=batch.project,
        created_at=now,
        expires_at=expires_at,
    )
