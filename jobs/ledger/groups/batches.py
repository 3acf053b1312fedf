"""Create, find, accept, reject and cancel OpenAI batches. Their end is in `batch_ends`.

A batch consists of the lines of one file, which are run by one job for each model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.data.drafts import StoredObject
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move
from jobs.db.states import BatchState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import Conflict, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts import usage
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.records import announcements, pages
from jobs.specs.inference import JobSpec

ROWS_PURPOSE = "batch_rows"
"""Purpose of the internal files that a batch's input is split into."""
OUTPUT_PURPOSE = "batch_output"
_RETRY_SECONDS = 600.0  # how long a client's retry of a request finds the batch of the first try
_TO_VALIDATE = (
    select(col(Batch.id)).where(col(Batch.state) == BatchState.VALIDATING).order_by(col(Batch.created_at))
)  # built once, since the scheduler asks at every wake-up


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A checked request for a batch."""

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
    """The lines of a batch that one job runs."""

    spec: JobSpec
    """Spec of the job, with the input `file:<file_id>`."""
    file_id: str
    rows: StoredObject
    num_rows: int
    pins: Pins | None = None
    """Versions of the model files that the job uses, fixed when the lines were read."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The jobs that a batch's lines were divided into."""

    num_lines: int
    model: str | None
    """Model name, if all lines use the same one."""
    parts: Sequence[BatchPart]
    num_carried: int = 0
    carried: StoredObject | None = None
    """Responses that are copied from the batch that this one retries."""


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Numbers of lines of a batch."""

    total: int
    completed: int
    failed: int


# -- create and find -----------------------------------------------------------------------------------------------


def create(
    db: Database,
    new: NewBatch,
    *,
    project: str,
    idempotency_key: str | None = None,
    is_retry: bool = False,
    wanted: RowsWanted | None = None,
) -> Batch:
    """Create a batch in state `validating`, only once for repeated requests.

    Args:
        idempotency_key: A repeated request with the same key returns the first one's batch.
        is_retry: Whether the client states that this is a retry; then an equal request of the last ten minutes is taken
            for its first try.
        wanted: The room that the batch needs, if its project's queue has a limit.

    Raises:
        Conflict: The key was used for another request.
        QueueFull: The queue has not enough room now.
        TooManyRows: The batch would not fit even into an empty queue.
    """
    key = None if idempotency_key is None else f"{project}/{idempotency_key}"
    try:
        with db.write() as tx:
            tx.take_turn(new.digest)  # of two simultaneous tries, the second waits until the first has committed
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
    except IntegrityError:  # another request with this key was inserted after the check above
        with db.read() as tx:
            first = _made_before(tx, new, project=project, key=key, since=None)
        if first is None:
            raise
        return first


def get(session: Session, batch_id: str) -> Batch:
    """Return the batch with this id; raises NotFound."""
    return pages.find(session, Batch, batch_id)


def list_batches(
    session: Session, *, project: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Batch], bool]:
    """Return a page of batches without their errors, and whether more follow; see `pages.owned_page`."""
    return pages.owned_page(session, Batch, project=project, after=after, limit=limit, large=[Batch.errors])


def counts(session: Session, batch: Batch) -> BatchCounts:
    """Count a batch's lines: as recorded when it ended, or else from the present counters of its jobs."""
    if batch.num_completed is not None and batch.num_failed is not None:
        return BatchCounts(batch.num_lines, batch.num_completed, batch.num_failed)
    sums = select(func.coalesce(func.sum(Job.num_done), 0), func.coalesce(func.sum(Job.num_failed), 0))
    done, failed = session.execute(sums.where(col(Job.batch_id) == batch.id)).one()
    return BatchCounts(batch.num_lines, batch.num_carried + int(done) - int(failed), int(failed))


def jobs_of(session: Session, batch_id: str) -> list[Job]:
    """Return a batch's jobs in order of creation."""
    return list(session.scalars(select(Job).where(col(Job.batch_id) == batch_id).order_by(col(Job.id))))


def to_validate(session: Session) -> list[str]:
    """Return the ids of the batches that are validating, oldest first."""
    return list(session.scalars(_TO_VALIDATE))


# -- accept, reject, cancel ----------------------------------------------------------------------------------------


def accept(db: Database, batch_id: str, plan: BatchPlan) -> None:
    """Set a validating batch to `in_progress` and create its jobs.

    Raises:
        Conflict: The batch is no longer validating.
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


def reject(db: Database, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """Fail a validating batch, of which nothing was run.

    Args:
        errors: The errors, each with the keys `code`, `message`, `line` and `param`.

    Raises:
        Conflict: The batch is no longer validating.
    """
    with db.write() as tx:
        batch = lock(tx, batch_id, BatchState.VALIDATING)
        move(batch, BatchState.FAILED)
        batch.failed_at = tx.time()
        batch.errors = [dict(error) for error in errors]
        batch.num_completed = batch.num_failed = 0
        announcements.announce_batch(tx, batch)


def cancel(db: Database, batch_id: str) -> Batch:
    """Cancel a batch. Its jobs are cancelled, and the lines that they finished are in the output file.

    A batch whose output files are being written already is not changed.

    Raises:
        NotFound: There is no such batch.
        Conflict: The batch has ended.
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
            announcements.announce_batch(tx, batch)
        elif batch.state == BatchState.IN_PROGRESS:
            move(batch, BatchState.CANCELLING)
            batch.cancelling_at = now
            tx.record(batch_id, "batch.cancelling")
        return batch


# -- shared --------------------------------------------------------------------------------------------------------


def _made_before(
    session: Session, new: NewBatch, *, project: str, key: str | None, since: float | None
) -> Batch | None:
    if key is not None:
        batch = session.scalar(select(Batch).where(col(Batch.idempotency_key) == key))
        if batch is not None and batch.digest != new.digest:
            raise Conflict("this Idempotency-Key was already used for another batch", param="Idempotency-Key")
        return batch
    if since is None:
        return None
    equal = (col(Batch.digest) == new.digest, col(Batch.project) == project, col(Batch.created_at) >= since)
    # Not a cancelled batch: the client that cancelled it has received the response to its request.
    alive = col(Batch.state).not_in((BatchState.CANCELLING, BatchState.CANCELLED))
    return session.scalar(select(Batch).where(*equal, alive).order_by(col(Batch.created_at).desc()).limit(1))


def lock(session: Session, batch_id: str, *expected: BatchState) -> Batch:
    """Lock the batch's row, so that no other transaction changes its state meanwhile.

    Raises:
        Conflict: The batch does not exist or is in none of the expected states.
    """
    batch = session.scalar(select(Batch).where(col(Batch.id) == batch_id).with_for_update())
    if batch is None or batch.state not in expected:
        now = "deleted" if batch is None else batch.state
        raise Conflict(f"batch {batch_id} is {now}, not {' or '.join(expected)}")
    return batch


def stored_file(
    batch: Batch, file_id: str, purpose: str, content: StoredObject, now: float, *, expires_at: float | None
) -> StoredFile:
    """Make the record of a file that a batch was split into or that it produced."""
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
