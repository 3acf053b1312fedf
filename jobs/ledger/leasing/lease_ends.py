"""Ends leases. Whenever a lease ends, the rest of its gang ends in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, or_, select
from sqlmodel import Session, col

from jobs.config.times import RetryTimes
from jobs.db.moves import move
from jobs.db.states import LIVE_LEASE_STATES, AttemptEnd, JobState, LeaseState
from jobs.db.tables import IS_LIVE, Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import DeviceOutOfMemory, ModelTooLarge, StokerError
from jobs.ledger.accounts import project_use
from jobs.ledger.leasing import lost_work


@dataclass(frozen=True, slots=True)
class Locked:
    """A lease whose row, with those of its whole gang, is locked until the transaction ends."""

    lease: Lease
    mates: tuple[Lease, ...]
    """Other leases of its gang that were live when it was locked; empty for a lease without a gang."""

    @property
    def is_live(self) -> bool:
        """Whether it is still live: the end of another lease of its gang may have ended it since it was locked."""
        return self.lease.state in LIVE_LEASE_STATES


def lock(session: Session, *conditions: Any) -> list[Locked]:
    """Lock the live leases that meet the conditions, and their gangs.

    Every transaction that may end a lease calls this before it locks anything else. All rows are locked in the order of
    their ids, so that two transactions that end leases of one gang wait for each other instead of deadlocking.

    Returns:
        The leases that still meet the conditions now that they are locked, leaders of gangs first, then by id.
    """
    gangs = select(col(Lease.gang_id)).where(IS_LIVE, col(Lease.gang_id).is_not(None), *conditions)
    wanted = select(Lease).where(IS_LIVE, or_(and_(*conditions), col(Lease.gang_id).in_(gangs)))
    found = session.scalars(wanted.order_by(col(Lease.id)).with_for_update()).all()
    if not found:
        return []
    # Check again under the locks: a lease may have been renewed or ended while this waited for its row.
    still = select(col(Lease.id)).where(col(Lease.id).in_([lease.id for lease in found]), IS_LIVE, *conditions)
    meant = set(session.scalars(still))
    return [
        Locked(lease, tuple(mate for mate in found if mate.gang_id == lease.gang_id is not None and mate is not lease))
        for lease in sorted(found, key=lambda lease: (lease.rank, lease.id))
        if lease.id in meant
    ]


def end(tx: Transaction, locked: Locked, state: LeaseState, reason: str) -> list[Lease]:
    """End a live lease that `lock` returned, and its gang.

    Returns:
        The leases that ended, the given one first.
    """
    lease = locked.lease
    ended = [lease, *(mate for mate in locked.mates if mate.state in LIVE_LEASE_STATES)]
    for one in ended:
        if one is lease:
            how, why = state, reason
        else:
            in_order = state is LeaseState.RELEASED and one.state is LeaseState.ACTIVE
            how, why = LeaseState.RELEASED if in_order else LeaseState.REVOKED, f"its gang has ended: {reason}"
        move(one, how)
        one.ended_at, one.end_reason = tx.time(), why
    for one in ended:
        tx.record(one.job_id, f"lease.{one.state}", lease=one.id, slot=one.slot_id, reason=one.end_reason)
    project_use.charge(tx, ended)
    return ended


def release(tx: Transaction, locked: Locked, reason: str, error: StokerError | None = None) -> None:
    """Release a live lease that `lock` returned, and its gang, in the caller's transaction."""
    lease = locked.lease
    ended = end(tx, locked, LeaseState.RELEASED, reason)
    lost_work.end_attempt(tx, lease, _attempt_end(tx, lease, error), reason)
    for one in ended:
        lost_work.return_chunks(tx, one.id)
    lost_work.settle_if_cancelling(tx, lease.job_id)


def revoke(tx: Transaction, locked: Locked, reason: str) -> None:
    """Revoke a live lease on which no work has begun, and its gang, in the caller's transaction."""
    for lease in end(tx, locked, LeaseState.REVOKED, reason):
        lost_work.return_chunks(tx, lease.id)
    lost_work.end_attempt(tx, locked.lease, AttemptEnd.LOST, reason)


def withdraw(tx: Transaction, reason: str, *conditions: Any) -> list[str]:
    """Revoke the leases that meet the conditions and are not active yet, in the caller's transaction.

    Leases are always locked before jobs, so a caller that changes a job calls this first.

    Returns:
        The ids of their jobs, sorted, which is the order in which to lock the jobs.
    """
    withdrawn = set()
    for locked in lock(tx, col(Lease.state) == LeaseState.GRANTED, *conditions):
        if locked.is_live:
            revoke(tx, locked, reason)
            withdrawn.add(locked.lease.job_id)
    return sorted(withdrawn)


def lose(
    tx: Transaction,
    locked: Locked,
    how: AttemptEnd,
    reason: str,
    retries: RetryTimes,
    *,
    computing: int | None = None,
    error: StokerError | None = None,
) -> list[Lease]:
    """End a lease whose holder is lost, and its gang: the attempt ends once, and all of their chunks become pending."""
    ended = end(tx, locked, LeaseState.EXPIRED, reason)
    lost_work.end_attempt(tx, locked.lease, how, reason)
    for lease in ended:
        blamed = computing if lease is locked.lease else None
        lost_work.return_lost_chunks(tx, lease, retries, computing=blamed, error=error)
    return ended


def expire(tx: Transaction, locked: Locked, reason: str, retries: RetryTimes) -> list[str]:
    """End a live lease whose holder is gone, and its gang, in the caller's transaction. Their chunks become pending.

    Returns:
        The ids of the leases that ended.
    """
    ended = lose(tx, locked, AttemptEnd.LOST, reason, retries)
    lost_work.settle_if_cancelling(tx, locked.lease.job_id)
    return [lease.id for lease in ended]


def _attempt_end(session: Session, lease: Lease, error: StokerError | None) -> AttemptEnd:
    """Why the attempt of a released lease ended, if the training is not done."""
    job = session.get_one(Job, lease.job_id)
    match job.state:
        case JobState.FAILED:
            is_memory = job.error_code in (ModelTooLarge.code, DeviceOutOfMemory.code)
            return AttemptEnd.OUT_OF_MEMORY if is_memory else AttemptEnd.USER_ERROR
        case JobState.EXPIRED:
            return AttemptEnd.TIME_LIMIT
        case JobState.CANCELLING | JobState.CANCELLED:
            return AttemptEnd.CANCELLED
        case _ if error is not None:
            return AttemptEnd.MACHINE
        case _:
            return AttemptEnd.PREEMPTED if lease.yield_asked else AttemptEnd.SHUTDOWN
