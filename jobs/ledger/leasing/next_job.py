"""Passes a slot from a job that is done on to the next small job of the same model, without the scheduler.

A round trip over the scheduler takes longer than a small job computes. So the holder of a lease that has nothing left
to do releases it and takes a lease of the next job in one transaction. Each job still has leases, events, results and
errors of its own, and a commit is fenced by the job's own lease.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import Chunk, Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.ledger.leasing import grants, lease_ends, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import TRAINING
from jobs.specs.needs import Needs

_QUEUE_HEAD = 64
"""Number of jobs at the head of the queue among which the next one is searched."""


def release_and_take_next(
    db: Database, lease_id: str, reason: str, *, lease_seconds: float, incarnation: str
) -> WorkingLease | None:
    """Release a lease in order, and take its slot for the next job: the oldest one that waits for its first slot and
    has the same project, priority and model.

    The caller returns the slot to the scheduler after a while, so that other jobs get it by their priority and share.

    Args:
        reason: Why the lease is released; a description for people.
        lease_seconds: Duration of the next lease.
        incarnation: Token of the worker process.

    Returns:
        The lease of the next job, active. None if there is no such job, or if the slot was asked back; then the lease
        is released all the same.

    Raises:
        LostLease: The lease is no longer active.
    """
    with db.write() as tx:
        locked = leases.lock_active(tx, lease_id)
        lease_ends.release(tx, locked, reason)
        job_id = _next_job(tx, locked.lease)
        if job_id is None:
            return None
        granted = grants.write(tx, [Grant(job_id, (locked.lease.slot_id,))], lease_seconds=lease_seconds)
        if not granted.rings:
            return None  # the slot went offline at this moment
        return leases.activate_in(tx, granted.rings[0].lease_id, incarnation, lease_seconds=lease_seconds)


def _next_job(tx: Transaction, lease: Lease) -> str | None:
    """Lock the next job of an ended lease's slot, and return its id. No other lock is waited for."""
    if lease.gang_id is not None or lease.yield_asked or lease.shutdown_asked:
        return None
    done = tx.get_one(Job, lease.job_id)
    slot = tx.get_one(Slot, lease.slot_id)
    waits = (
        col(Job.state) == JobState.QUEUED,
        col(Job.priority) == done.priority,
        col(Job.not_before) <= tx.now(),
    )
    columns: list[Any] = [Job.id, Job.kind, Job.project, Job.model_key, Job.needs, Job.ready_at]
    head = select(*columns).where(*waits).order_by(col(Job.ready_at), col(Job.id)).limit(_QUEUE_HEAD).subquery()
    claimable = exists().where(
        col(Chunk.job_id) == head.c.id, col(Chunk.state) == ChunkState.PENDING, col(Chunk.not_before) <= tx.now()
    )
    alike = (
        select(head.c.id, head.c.needs)
        .where(
            head.c.kind != TRAINING,
            head.c.project == done.project,
            head.c.model_key == done.model_key,
            claimable,
        )
        .order_by(head.c.ready_at, head.c.id)
    )
    # First the head is read, then rows are locked by their ids. In one query, PostgreSQL may read all waiting jobs of
    # the project to join them with the head.
    usable = [row.id for row in tx.execute(alike) if Needs.from_stored(row.needs).met_by(slot)]
    if not usable:
        return None
    still_waiting = select(col(Job.id)).where(col(Job.id).in_(usable), *waits)
    oldest = still_waiting.order_by(col(Job.ready_at), col(Job.id)).limit(1).with_for_update(skip_locked=True)
    job_id: str | None = tx.scalar(oldest)
    return job_id
