"""Sweeps over all jobs: finish cancellations, expire overdue jobs, and requeue jobs that lost all leases."""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.moves import move, moving
from jobs.db.states import EXPIRABLE_JOB_STATES, LIVE_LEASE_STATES, JobState
from jobs.db.tables import Job, Lease
from jobs.errors import DeadlineExceeded
from jobs.ledger import announcements, lease_ends, lost_work


def settle_cancelled(db: Database) -> list[str]:
    """Cancel the jobs that are `cancelling` and have no live lease left.

    Returns:
        The ids of those jobs.
    """
    with db.write() as tx:
        cancelling = tx.scalars(select(col(Job.id)).where(col(Job.state) == JobState.CANCELLING)).all()
        return [job_id for job_id in cancelling if lost_work.settle_if_cancelling(tx, job_id)]


def expire_overdue(db: Database) -> list[str]:
    """Expire the jobs whose time limit has passed; their recorded results stay readable.

    Returns:
        The ids of those jobs.
    """
    with db.write() as tx:
        late = DeadlineExceeded("the job's time limit passed before it was done")
        is_live = col(Job.state).in_(EXPIRABLE_JOB_STATES)
        overdue = select(col(Job.id)).where(is_live, col(Job.deadline_at) < tx.now())
        expired = []
        for job_id in tx.scalars(overdue).all():
            lease_ends.withdraw(tx, "the job's time limit passed", col(Lease.job_id) == job_id)
            ended = (
                moving(Job, EXPIRABLE_JOB_STATES, JobState.EXPIRED)
                .where(col(Job.id) == job_id)
                .values(ended_at=tx.now(), error_code=late.code, error_message=late.message)
            )
            if tx.changed(ended):
                announcements.tell_job(tx, job_id, JobState.EXPIRED)
                expired.append(job_id)
        return expired


def requeue_idle(db: Database) -> list[str]:
    """Set running jobs without a live lease back to `queued`.

    Returns:
        The ids of those jobs.
    """
    with db.write() as tx:
        live = exists().where(col(Lease.job_id) == col(Job.id), col(Lease.state).in_(LIVE_LEASE_STATES))
        idle = select(Job).where(col(Job.state) == JobState.RUNNING, ~live)
        requeued = []
        for job in tx.scalars(idle.with_for_update(skip_locked=True)).all():
            # Check again under the lock: under PostgreSQL's READ COMMITTED, a grant may have committed meanwhile.
            held = select(exists().where(col(Lease.job_id) == job.id, col(Lease.state).in_(LIVE_LEASE_STATES)))
            if tx.scalar(held):
                continue
            move(job, JobState.QUEUED)
            tx.record(job.id, "job.queued")
            requeued.append(job.id)
        return requeued
