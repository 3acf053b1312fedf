"""Submit, find, complete, fail, cancel and retry jobs. See `planning` for their chunks and `overdue` for expiry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Artifact, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, NotFound, StokerError
from jobs.ledger import dependencies, job_ends
from jobs.ledger.accounts import usage
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.leasing import lease_ends, lost_work
from jobs.ledger.records import pages
from jobs.ledger.records.pages import Order
from jobs.ledger.timing.workloads import workload_of
from jobs.specs.array_spec import ArraySpec, Value, parse_submission
from jobs.specs.fields import parse_time
from jobs.specs.inference import InferenceSpec, JobSpec, model_key
from jobs.specs.inference import dependencies as dependencies_of

# -- create and find -----------------------------------------------------------------------------------------------


def new_job_id() -> str:
    """Make an id for a job that is about to be submitted."""
    return new_id("job")


def submit(
    db: Database,
    spec: JobSpec | ArraySpec,
    *,
    project: str = "default",
    idempotency_key: str | None = None,
    wanted: RowsWanted | None = None,
    pins: Pins | None = None,
    admit: Callable[[Transaction], float | None] = lambda _: None,
) -> Job:
    """Create a job in state `validating`; the planner continues from there.

    Args:
        idempotency_key: A repeated submission of the project with the same key returns the first one's job.
        wanted: The room that the job needs, if its project's queue has a limit.
        pins: The present versions of the model files and code that the job uses.
        admit: Called in the transaction that creates the job; raises to refuse it. For a spec with a promise, it
            returns the slot-seconds that are promised.

    Raises:
        QueueFull: The queue has not enough room now.
        TooManyRows: The job would not fit even into an empty queue.
    """
    num_rows = 0
    try:
        with db.write() as tx:
            if wanted is not None:
                usage.reserve_rows(tx, project, wanted)
                num_rows = wanted.num_rows or 0
            return add(
                tx,
                spec,
                project=project,
                idempotency_key=idempotency_key,
                num_rows=num_rows,
                pins=pins,
                promise_seconds=admit(tx),
            )
    except IntegrityError:
        with db.read() as tx:
            first = None if idempotency_key is None else find_submitted(tx, project, idempotency_key)
        if first is None:
            raise
        return first


def find_submitted(session: Session, project: str, idempotency_key: str) -> Job | None:
    """The job that a project submitted with this idempotency key, or None."""
    return session.scalar(select(Job).where(col(Job.idempotency_key) == _key_of(project, idempotency_key)))


def add(
    tx: Transaction,
    spec: JobSpec | ArraySpec,
    *,
    project: str,
    idempotency_key: str | None = None,
    retry_of: str | None = None,
    child_of: tuple[str, int] | None = None,
    trial_values: Mapping[str, Value] | None = None,
    batch_id: str | None = None,
    deadline_at: float | None = None,
    num_rows: int = 0,
    pins: Pins | None = None,
    promise_seconds: float | None = None,
) -> Job:
    """Create a job in state `validating` in the caller's transaction. It waits for the jobs that its spec comes after.

    Args:
        num_rows: Number of rows, if they are counted already; the planner's count replaces it.
        child_of: The array of which it is a child, and its index. It waits until the array has a place for it.
        trial_values: The values of a trial of a sweep.
        batch_id: The batch of which this job runs all or some lines.
        deadline_at: When the job expires, in Unix seconds, if its spec has no time limit.
        pins: See `submit`.
        promise_seconds: The slot-seconds that are promised; None for a job without a promise, whatever its spec says.

    Raises:
        InvalidSpec: See `dependencies.begin_wait`.
    """
    job = Job(
        id=new_job_id(),
        kind=spec.kind,
        name=spec.name,
        state=JobState.VALIDATING,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority.rank,
        max_slots=_max_slots(spec),
        model_key="" if isinstance(spec, ArraySpec) else model_key(spec),
        workload=None if isinstance(spec, ArraySpec) else workload_of(spec, pins).as_json(),
        project=project,
        idempotency_key=None if idempotency_key is None else _key_of(project, idempotency_key),
        retry_of=retry_of,
        parent_id=None if child_of is None else child_of[0],
        child_index=None if child_of is None else child_of[1],
        num_ahead=spec.num_ahead if isinstance(spec, ArraySpec) else 0,
        trial_values=None if trial_values is None else dict(trial_values),
        batch_id=batch_id,
        num_rows=num_rows,
        max_row_errors=_row_error_limit(spec),
        pins=None if pins is None else pins.stored(),
        created_at=tx.time(),
        deadline_at=deadline_at,
        promise_at=_promise_at(spec) if promise_seconds is not None else None,
        promise_seconds=promise_seconds,
    )
    dependencies.begin_wait(tx, job, dependencies_of(spec))
    tx.add(job)
    summary = spec.model_dump(mode="json", include={"kind", "task", "model", "module"}, exclude_none=True)
    tx.record(job.id, "job.submitted", **summary)
    for counter in ("num_done", "num_failed", "num_tokens"):
        set_committed_value(job, counter, 0)  # known without a query
    return job


def get(session: Session, job_id: str) -> Job:
    """Return the job with this id; raises NotFound."""
    return pages.find(session, Job, job_id)


def list_jobs(
    session: Session,
    *,
    project: str | None = None,
    after: str | None = None,
    limit: int = 20,
    state: JobState | None = None,
    parent_id: str | None = None,
    order: Order = "desc",
) -> tuple[list[Job], bool]:
    """Return a page of the children of an array, or of all other jobs, and whether more follow; see
    `pages.owned_page`.

    Their specs and pins, which may be megabytes, are not read.
    """
    conditions = [col(Job.parent_id).is_(None) if parent_id is None else col(Job.parent_id) == parent_id]
    if state is not None:
        conditions.append(col(Job.state) == state)
    large = [Job.spec, Job.pins]
    return pages.owned_page(
        session, Job, *conditions, project=project, after=after, limit=limit, order=order, large=large
    )


def artifacts(session: Session, job_id: str) -> list[Artifact]:
    """Return a job's artifacts, sorted by name."""
    return list(session.scalars(select(Artifact).where(col(Artifact.job_id) == job_id).order_by(col(Artifact.name))))


# -- complete, fail, cancel, retry ---------------------------------------------------------------------------------


def complete(db: Database, job_id: str, made: Sequence[Artifact]) -> None:
    """Complete a finalizing job, with the artifacts it made, and keep its measured speed.

    Raises:
        Conflict: The job is not finalizing (another finalizer was first, or its time limit passed).
    """
    with db.write() as tx:
        if not job_ends.complete(tx, job_id, made):
            raise Conflict(f"job {job_id} is not finalizing")


def fail(db: Database, job_id: str, error: StokerError) -> bool:
    """Fail a live job. Holders of its leases notice at their next heartbeat, claim or commit.

    Returns:
        Whether the job was live.
    """
    with db.write() as tx:
        lease_ends.withdraw(tx, "the job failed", col(Lease.job_id) == job_id)
        return lost_work.fail_job(tx, job_id, error.code, error.message)


def cancel(db: Database, job_id: str) -> Job:
    """Cancel a job: at once if none of its leases is active, otherwise as soon as the last one has ended.

    A job that is being finalized has all its results already, and completes. The children of an array are cancelled
    with it.

    Raises:
        NotFound: There is no such job.
        Conflict: The job has ended.
    """
    with db.write() as tx:
        children = select(col(Job.id)).where(col(Job.parent_id) == job_id, col(Job.state).in_(LIVE_JOB_STATES))
        of_family = (col(Lease.job_id) == job_id) | col(Lease.job_id).in_(children)
        lease_ends.withdraw(tx, "the job was cancelled", of_family)
        _lock_live_children(tx, job_id)
        job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update(key_share=True))
        if job is None:
            raise NotFound(f"there is no job '{job_id}'")
        if job.state.is_terminal:
            raise Conflict(f"job {job_id} has ended already: {job.state}")
        _begin_cancel(tx, job)
        for child in _lock_live_children(tx, job_id):  # again: a child may have been made before the array was locked
            _begin_cancel(tx, child)
            lost_work.settle_if_cancelling(tx, child.id)
        lost_work.settle_if_cancelling(tx, job_id)
        tx.flush()
        tx.refresh(job)
        return job


def _lock_live_children(tx: Transaction, array_id: str) -> Sequence[Job]:
    is_live = (col(Job.parent_id) == array_id, col(Job.state).in_(LIVE_JOB_STATES))
    children = select(Job).where(*is_live).order_by(col(Job.id)).with_for_update(key_share=True)
    return tx.scalars(children.execution_options(populate_existing=True)).all()


def _begin_cancel(tx: Transaction, job: Job) -> None:
    """Cancel a locked job that has no lease, or let the holders of its leases notice that it is being cancelled."""
    if job.state in (JobState.VALIDATING, JobState.QUEUED):
        move(job, JobState.CANCELLED)
        job.ended_at = tx.time()
        job_ends.record_end(tx, job.id, JobState.CANCELLED)
    elif job.state == JobState.RUNNING:
        move(job, JobState.CANCELLING)
        tx.record(job.id, "job.cancelling")


def retry(db: Database, job_id: str, *, wanted: RowsWanted | None = None, pins: Pins | None = None) -> Job:
    """Submit an ended job's spec again, as a new job with `retry_of` set.

    While that retry is live, another call returns the same one, so that a command that is repeated by mistake or after
    a lost response does the work once. The retry of an array makes only those children that did not complete. A retry
    keeps no promise.

    Args:
        wanted: See `submit`.
        pins: See `submit`.

    Raises:
        NotFound: There is no such job.
        Conflict: The job has not ended, or it completed.
        QueueFull: See `submit`.
        TooManyRows: See `submit`.
    """
    with db.write() as tx:
        # Under this lock, two concurrent retries run one after the other.
        job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update(key_share=True))
        if job is None:
            raise NotFound(f"there is no job '{job_id}'")
        if job.state not in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
            raise Conflict(f"job {job_id} is {job.state}; only a failed, cancelled or expired job can be retried")
        live = live_retry(tx, job_id)
        if live is not None:
            return live
        num_rows = 0
        if wanted is not None:
            usage.reserve_rows(tx, job.project, wanted)
            num_rows = wanted.num_rows or 0
        spec = parse_submission(job.spec)
        return add(tx, spec, project=job.project, retry_of=job.id, num_rows=num_rows, pins=pins)


def live_retry(session: Session, job_id: str) -> Job | None:
    """The live retry of a job, or None."""
    retries = select(Job).where(col(Job.retry_of) == job_id, col(Job.state).in_(LIVE_JOB_STATES))
    return session.scalar(retries.order_by(col(Job.created_at)).limit(1))


# -- shared --------------------------------------------------------------------------------------------------------


def _max_slots(spec: JobSpec | ArraySpec) -> int | None:
    if isinstance(spec, ArraySpec):
        return spec.max_parallel
    return spec.slots.max if isinstance(spec, InferenceSpec) else spec.slots


def _promise_at(spec: JobSpec | ArraySpec) -> float | None:
    return None if isinstance(spec, ArraySpec) or spec.promise is None else parse_time(spec.promise)


def _row_error_limit(spec: JobSpec | ArraySpec) -> str | None:
    limit = spec.max_row_errors if isinstance(spec, InferenceSpec) else None
    return None if limit is None else str(limit)


def _key_of(project: str, idempotency_key: str) -> str:
    """The key as stored, with its project, since two projects may choose equal keys."""
    return f"{project}/{idempotency_key}"
