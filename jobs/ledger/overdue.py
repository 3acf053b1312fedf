"""The reaper's work on all jobs: finish cancellations, expire overdue jobs, and requeue jobs that lost all leases."""

from __future__ import annotations

from sqlalchemy import ScalarSelect, exists, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.moves import move, moving
from jobs.db.states import EXPIRABLE_JOB_STATES, LIVE_LEASE_STATES, JobState
from jobs.db.tables import Job, Lease
from jobs.errors import DeadlineExceeded
from jobs.ledger import counts, job_ends
from jobs.ledger.families import IS_ARRAY
from jobs.ledger.leasing import lease_ends, lost_work

_CAN_EXPIRE = (col(Job.ended_at).is_(None), col(Job.state).in_(EXPIRABLE_JOB_STATES))
"""The conditions that a job's time limit may end it; the index of deadlines holds only jobs that have not ended."""


def settle_cancelled(db: Database) -> list[str]:
    """Cancel the jobs that are `cancelling` and have no live lease left.

    Returns:
        The ids of those jobs.
    """
    with db.read() as session:
        cancelling = session.scalars(select(col(Job.id)).where(col(Job.state) == JobState.CANCELLING)).all()
    settled = []
    # One transaction each: the end of a child locks its array, after which no child is locked.
    for job_id in cancelling:
        with db.write() as tx:
            if lost_work.settle_if_cancelling(tx, job_id):
                settled.append(job_id)
    return settled


def expire_overdue(db: Database) -> list[str]:
    """Expire the jobs whose time limit has passed; their recorded results stay readable.

    Returns:
        The ids of those jobs.
    """
    late = DeadlineExceeded("the job reached its time limit before it was done")
    is_overdue = (col(Job.deadline_at) < db.now(), *_CAN_EXPIRE)
    with db.read() as session:
        overdue = session.scalars(select(col(Job.id)).where(*is_overdue).order_by(col(Job.id))).all()
    expired = []
    for job_id in overdue:  # one transaction each, as in `settle_cancelled`
        with db.write() as tx:
            lease_ends.withdraw(tx, "the job's time limit passed", col(Lease.job_id) == job_id)
            lost_work.take_turn(tx, job_id)
            ended = (
                moving(Job, EXPIRABLE_JOB_STATES, JobState.EXPIRED)
                .where(col(Job.id) == job_id, *is_overdue)
                .values(ended_at=tx.now(), error_code=late.code, error_message=late.message)
            )
            if tx.changed(ended):
                job_ends.record_end(tx, job_id, JobState.EXPIRED)
                expired.append(job_id)
    return expired


def next_deadline() -> ScalarSelect[float | None]:
    """When the next live job reaches its time limit, as a query that reads one entry of the index of deadlines."""
    return (
        select(col(Job.deadline_at))
        .where(col(Job.deadline_at).is_not(None), *_CAN_EXPIRE)
        .order_by(col(Job.deadline_at))
        .limit(1)
        .scalar_subquery()
    )


def requeue_idle(db: Database) -> list[str]:
    """Set running jobs without a live lease back to `queued`, or end them if all of their chunks are recorded.

    Returns:
        The ids of the jobs that are queued again.
    """
    live = exists().where(col(Lease.job_id) == col(Job.id), col(Lease.state).in_(LIVE_LEASE_STATES))
    is_idle = (col(Job.state) == JobState.RUNNING, ~live, ~IS_ARRAY)
    with db.read() as session:
        idle = session.scalars(select(col(Job.id)).where(*is_idle).order_by(col(Job.id))).all()
    requeued = []
    for job_id in idle:  # one transaction each, as in `settle_cancelled`
        with db.write() as tx:
            if counts.settle_now(tx, job_id):
                continue  # whoever recorded its last chunk died before it saw that it was the last
            job = tx.scalar(select(Job).where(col(Job.id) == job_id).with_for_update(skip_locked=True, key_share=True))
            # Check again under the lock: a grant may have committed meanwhile.
            if job is None or tx.scalar(select(col(Job.id)).where(col(Job.id) == job_id, *is_idle)) is None:
                continue
            move(job, JobState.QUEUED)
            tx.record(job.id, "job.queued")
            requeued.append(job.id)
    return requeued
