"""Submit, find, complete, fail, cancel and retry jobs. See `planning` for their chunks and `sweeps` for expiry."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move, moving
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Artifact, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, NotFound, StokerError
from jobs.ledger import announcements, lease_ends, lost_work, paging, usage
from jobs.ledger.paging import Order
from jobs.ledger.usage import RowsWanted
from jobs.specs.inference import InferenceSpec, JobSpec, model_key, parse_spec, source_job

# -- create and find -----------------------------------------------------------------------------------------------


def new_job_id() -> str:
    """Make an id for a job that is about to be submitted."""
    return new_id("job")


def submit(
    db: Database,
    spec: JobSpec,
    *,
    project: str = "default",
    idempotency_key: str | None = None,
    wanted: RowsWanted | None = None,
    pins: Pins | None = None,
) -> Job:
    """Create a job in state `validating`; the planner continues from there.

    Args:
        idempotency_key: A repeated submission of the project with the same key returns the first one's job.
        wanted: The room that the job needs, if its project's queue has a limit.
        pins: The present versions of the model files and code that the job uses.

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
    spec: JobSpec,
    *,
    project: str,
    idempotency_key: str | None = None,
    retry_of: str | None = None,
    batch_id: str | None = None,
    deadline_at: float | None = None,
    num_rows: int = 0,
    pins: Pins | None = None,
) -> Job:
    """Create a job in state `validating` in the caller's transaction.

    Args:
        num_rows: Number of rows, if they are counted already; the planner's count replaces it.
        batch_id: The batch of which this job runs all or some lines.
        deadline_at: When the job expires, in Unix seconds, if its spec has no time limit.
        pins: See `submit`.
    """
    now = tx.time()
    job = Job(
        id=new_job_id(),
        kind=spec.kind,
        name=spec.name,
        state=JobState.VALIDATING,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority.rank,
        max_slots=spec.slots.max if isinstance(spec, InferenceSpec) else spec.slots,
        model_key=model_key(spec),
        project=project,
        idempotency_key=None if idempotency_key is None else _key_of(project, idempotency_key),
        retry_of=retry_of,
        batch_id=batch_id,
        num_rows=num_rows,
        waits_for=source_job(spec),
        max_row_errors=_row_error_limit(spec),
        pins=None if pins is None else pins.stored(),
        created_at=now,
        deadline_at=deadline_at if spec.time_limit is None else now + spec.time_limit,
    )
    tx.add(job)
    told = spec.model_dump(mode="json", include={"kind", "task", "model", "module"}, exclude_none=True)
    tx.record(job.id, "job.submitted", **told)
    return job


def get(session: Session, job_id: str) -> Job:
    """Return the job with this id.

    Raises:
        NotFound: There is no such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job '{job_id}'")
    return job


def list_jobs(
    session: Session,
    *,
    project: str | None = None,
    after: str | None = None,
    limit: int = 20,
    state: JobState | None = None,
    order: Order = "desc",
) -> tuple[list[Job], bool]:
    """Return a page of jobs by time of submission, without their specs and pins, which may be megabytes.

    Args:
        project: The project that owns the jobs; None for all projects.
        after: Id of the last job of the previous page.
        order: Either `desc`, newest first, or `asc`.

    Returns:
        The jobs, and whether more follow.

    Raises:
        NotFound: There is no job `after`.
    """
    conditions = []
    if project is not None:
        conditions.append(col(Job.project) == project)
    if state is not None:
        conditions.append(col(Job.state) == state)
    last = None if after is None else get(session, after)
    return paging.page(session, Job, *conditions, last=last, limit=limit, order=order, large=[Job.spec, Job.pins])


def artifacts(session: Session, job_id: str) -> list[Artifact]:
    """Return a job's artifacts, sorted by name."""
    return list(session.scalars(select(Artifact).where(col(Artifact.job_id) == job_id).order_by(col(Artifact.name))))


# -- complete, fail, cancel, retry ---------------------------------------------------------------------------------


def complete(db: Database, job_id: str, made: Sequence[Artifact]) -> None:
    """Complete a finalizing job, with the artifacts it made.

    Raises:
        Conflict: The job is not finalizing (another finalizer was first, or its time limit passed).
    """
    with db.write() as tx:
        completed = (
            moving(Job, JobState.FINALIZING, JobState.COMPLETED)
            .where(col(Job.id) == job_id)
            .values(ended_at=tx.now(), error_code=None, error_message=None)
            .returning(col(Job.num_done), col(Job.num_failed))
        )
        row = tx.execute(completed).one_or_none()
        if row is None:
            raise Conflict(f"job {job_id} is not finalizing")
        for artifact in made:
            tx.merge(artifact)
        announcements.tell_job(tx, job_id, JobState.COMPLETED, done=row.num_done, failed=row.num_failed)


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

    A job that is being finalized has all its results already, and completes.

    Raises:
        NotFound: There is no such job.
        Conflict: The job has ended.
    """
    with db.write() as tx:
        lease_ends.withdraw(tx, "the job was cancelled", col(Lease.job_id) == job_id)
        job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update())
        if job is None:
            raise NotFound(f"there is no job '{job_id}'")
        if job.state.is_terminal:
            raise Conflict(f"job {job_id} has ended already: {job.state}")
        if job.state in (JobState.VALIDATING, JobState.QUEUED):
            move(job, JobState.CANCELLED)
            job.ended_at = tx.time()
            announcements.tell_job(tx, job_id, JobState.CANCELLED)
        elif job.state == JobState.RUNNING:
            move(job, JobState.CANCELLING)
            tx.record(job_id, "job.cancelling")
            lost_work.settle_if_cancelling(tx, job_id)
        tx.flush()
        tx.refresh(job)
        return job


def retry(db: Database, job_id: str, *, wanted: RowsWanted | None = None, pins: Pins | None = None) -> Job:
    """Submit an ended job's spec again, as a new job with `retry_of` set.

    While that retry is live, another call returns the same one, so that a command that is repeated by mistake or after
    a lost response does the work once.

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
        job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update())
        if job is None:
            raise NotFound(f"there is no job '{job_id}'")
        if job.state not in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
            raise Conflict(f"job {job_id} is {job.state}; only a failed, cancelled or expired job is retried")
        live = live_retry(tx, job_id)
        if live is not None:
            return live
        num_rows = 0
        if wanted is not None:
            usage.reserve_rows(tx, job.project, wanted)
            num_rows = wanted.num_rows or 0
        spec = parse_spec(job.spec)
        return add(tx, spec, project=job.project, retry_of=job.id, num_rows=num_rows, pins=pins)


def live_retry(session: Session, job_id: str) -> Job | None:
    """The live retry of a job, or None."""
    retries = select(Job).where(col(Job.retry_of) == job_id, col(Job.state).in_(LIVE_JOB_STATES))
    return session.scalar(retries.order_by(col(Job.created_at)).limit(1))


# -- shared --------------------------------------------------------------------------------------------------------


def _row_error_limit(spec: JobSpec) -> str | None:
    limit = spec.max_row_errors if isinstance(spec, InferenceSpec) else None
    return None if limit is None else str(limit)


def _key_of(project: str, idempotency_key: str) -> str:
    """The key as stored, with its project, since two projects may choose equal keys."""
    return f"{project}/{idempotency_key}"
