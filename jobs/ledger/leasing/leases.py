"""Changes of leases: those of the scheduler, those of a lease's holder, and `fenced` for whatever a holder records.

Every function is one short transaction. All transactions lock rows in the same order (leases by their ids, then chunks,
then the job), so that two of them can never deadlock. A lease counts as live until one of these functions ends it in
the database: its holder may still commit after `expires_at`, as long as no other lease was given its work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.config.times import LeaseTimes, RetryTimes
from jobs.db.database import Database
from jobs.db.moves import move, moving
from jobs.db.states import AttemptEnd, JobState, LeaseState, SlotState, StopReason
from jobs.db.tables import Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.errors import DeviceOutOfMemory, InvalidSpec, LostLease, StokerError
from jobs.ledger.leasing import lease_ends, lost_work
from jobs.ledger.leasing.grants import Ring
from jobs.ledger.leasing.lease_ends import Locked
from jobs.specs.inference import TRAINING, JobSpec, parse_spec


@dataclass(frozen=True, slots=True)
class WorkingLease:
    """An active lease, with what its holder needs to run the job."""

    lease_id: str
    job_id: str
    slot_id: str
    spec: JobSpec
    attempt: int
    rank: int
    gang_id: str | None = None
    """Id of the lease's gang; None if it has none."""
    pins: Pins = field(default_factory=Pins)
    """Versions of the model files and code that the job uses, fixed at its submission."""


@dataclass(frozen=True, slots=True)
class RunnerActivity:
    """What the runner of a lease is doing, as reported by a heartbeat."""

    activity: str
    """Description for people."""
    seconds: float
    """Seconds since this activity began."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """Response to a heartbeat."""

    stop: StopReason | None
    """Why the holder must stop. None if it may continue."""


# -- for the scheduler ---------------------------------------------------------------------------------------------


def ask_yield(db: Database, yields: Mapping[str, str]) -> None:
    """Ask the holders of live leases to return them: after the current chunk, or after a training's next step.

    Args:
        yields: Id of each lease -> id of the job for which it is asked.
    """
    with db.write() as tx:
        for locked in lease_ends.lock(tx, col(Lease.id).in_(list(yields))):
            for lease in (locked.lease, *locked.mates):  # a gang yields as a whole
                lease.yield_asked, lease.yield_for = True, yields[locked.lease.id]


def unanswered(db: Database, times: LeaseTimes) -> list[Ring]:
    """Find granted leases whose doorbell must ring again. One that was rung too often ends, and its slot is unheard."""
    with db.write() as tx:
        now = tx.time()
        is_late = (col(Lease.state) == LeaseState.GRANTED, col(Lease.rung_at) <= now - times.doorbell_seconds)
        repeated = []
        for locked in lease_ends.lock(tx, *is_late):
            lease = locked.lease
            if not locked.is_live:
                continue  # its gang ended earlier in this loop
            if lease.rings >= times.doorbell_rings:
                reason = f"its worker did not answer the doorbell, which rang {lease.rings} times"
                lease_ends.lose(tx, locked, AttemptEnd.LOST, reason, times)
                silent = moving(Slot, SlotState.ONLINE, SlotState.UNHEARD).where(col(Slot.id) == lease.slot_id)
                tx.execute(silent.values(reason=reason))
            else:
                lease.rings, lease.rung_at, lease.expires_at = lease.rings + 1, now, now + times.lease_seconds
                repeated.append(locked)
        return [Ring(locked.lease.id, locked.lease.slot_id) for locked in repeated if locked.is_live]


def expire_dead(db: Database, retries: RetryTimes) -> list[str]:
    """End active leases that were not renewed in time, with their gangs. Their chunks become pending again.

    Returns:
        The ids of the leases that ended.
    """
    with db.write() as tx:
        is_dead = (col(Lease.state) == LeaseState.ACTIVE, col(Lease.expires_at) < tx.time())
        ended: list[str] = []
        for locked in lease_ends.lock(tx, *is_dead):
            if locked.is_live:
                ended += lease_ends.expire(tx, locked, "it was not renewed in time", retries)
        return ended


# -- for the holder of a lease -------------------------------------------------------------------------------------


def activate(db: Database, lease_id: str, incarnation: str, *, lease_seconds: float) -> WorkingLease | None:
    """Activate a granted lease for the worker that received its doorbell.

    Args:
        incarnation: Token of the worker process.

    Returns:
        The lease. None if the message is a duplicate or too late and must be dropped, if the job is no longer
        running, or if it fails now because its spec is not valid in this release.
    """
    with db.write() as tx:
        return activate_in(tx, lease_id, incarnation, lease_seconds=lease_seconds)


def activate_in(tx: Transaction, lease_id: str, incarnation: str, *, lease_seconds: float) -> WorkingLease | None:
    """Activate a granted lease in the caller's transaction; see `activate`."""
    now = tx.time()
    found = lease_ends.lock(tx, col(Lease.id) == lease_id, col(Lease.state) == LeaseState.GRANTED)
    if not found:
        return None
    lease = found[0].lease
    job = tx.get_one(Job, lease.job_id)
    if job.state != JobState.RUNNING:
        lease_ends.revoke(tx, found[0], f"the job was {job.state} already")
        lost_work.settle_if_cancelling(tx, job.id)
        return None
    try:
        spec = parse_spec(job.spec)
    except InvalidSpec as error:  # written by an earlier release, which accepted it
        lease_ends.revoke(tx, found[0], error.message)
        lost_work.fail_job(tx, job.id, error.code, error.message)
        return None
    move(lease, LeaseState.ACTIVE)
    lease.incarnation, lease.activated_at, lease.expires_at = incarnation, now, now + lease_seconds
    tx.record(job.id, "lease.active", lease=lease.id, slot=lease.slot_id, attempt=lease.attempt)
    return WorkingLease(
        lease.id,
        job.id,
        lease.slot_id,
        spec,
        lease.attempt,
        lease.rank,
        lease.gang_id,
        Pins.parse(job.pins),
    )


def renew(db: Database, lease_id: str, *, lease_seconds: float, doing: RunnerActivity | None = None) -> Renewal:
    """Record a heartbeat: extend an active lease, and report whether its holder must stop.

    Args:
        doing: What the runner is doing, if known.

    Raises:
        LostLease: The lease is no longer active; whatever its holder runs must end now.
    """
    with db.write() as tx:
        renewed = (
            update(Lease)
            .where(col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
            .values(
                expires_at=tx.now() + lease_seconds,
                activity=None if doing is None else doing.activity,
                activity_at=None if doing is None else tx.now() - doing.seconds,
            )
            .returning(col(Lease.job_id), col(Lease.yield_asked), col(Lease.shutdown_asked))
        )
        row = tx.execute(renewed).one_or_none()
        if row is None:
            raise LostLease
        job = tx.execute(select(col(Job.state), col(Job.kind)).where(col(Job.id) == row.job_id)).one()
    if job.kind == TRAINING and job.state in (JobState.CANCELLING, JobState.EXPIRED):
        return Renewal(StopReason.SHUTDOWN)  # with a checkpoint, from which a retry resumes
    if job.state not in (JobState.RUNNING, JobState.FINALIZING):
        return Renewal(StopReason.CANCEL)
    if row.shutdown_asked:
        return Renewal(StopReason.SHUTDOWN)
    return Renewal(StopReason.YIELD if row.yield_asked else None)


def release(db: Database, lease_id: str, reason: str, *, error: StokerError | None = None) -> None:
    """Return a lease in order, with its gang. Chunks that it still holds become pending; the attempt is not counted.

    Args:
        reason: Description for people.
        error: The machine's error, if that is the reason.

    Raises:
        LostLease: The lease is no longer active.
    """
    with db.write() as tx:
        lease_ends.release(tx, lock_active(tx, lease_id), reason, error)


def fail_job(db: Database, lease_id: str, error: StokerError) -> None:
    """Fail the job of an active lease and release the lease: no one sees the job failed and its attempt still running.

    The job's leases that are not active yet are revoked. Holders of the others notice at their next heartbeat, claim or
    commit.

    Raises:
        LostLease: The lease is no longer active; the job does not fail, since another holder may do its work.
    """
    with db.write() as tx:
        job_id = select(col(Lease.job_id)).where(col(Lease.id) == lease_id).scalar_subquery()
        unused = and_(col(Lease.job_id) == job_id, col(Lease.state) == LeaseState.GRANTED)
        found = {locked.lease.id: locked for locked in lease_ends.lock(tx, or_(_is_active(lease_id), unused))}
        if lease_id not in found:
            raise LostLease
        own = found.pop(lease_id)
        lost_work.fail_job(tx, own.lease.job_id, error.code, error.message)
        lease_ends.release(tx, own, error.message)
        for locked in found.values():
            if locked.is_live:
                lease_ends.revoke(tx, locked, "the job failed")


def crash(db: Database, lease_id: str, error: StokerError, *, computing: int | None, retries: RetryTimes) -> None:
    """End an active lease whose runner died.

    Args:
        error: How the runner died.
        computing: First row of the chunk that was being computed, against which the crash counts: after
            `retries.chunk_crashes` crashes it is split in two, until the row that kills the runner is alone and becomes
            a row error. None if no chunk was being computed (the model was being loaded, for example): the crash counts
            against the job, which fails after `retries.job_crashes` crashes in a row.

    Raises:
        LostLease: The lease is no longer active; its work was returned already.
    """
    with db.write() as tx:
        locked = lock_active(tx, lease_id)
        job_id = locked.lease.job_id
        end = AttemptEnd.OUT_OF_MEMORY if error.code == DeviceOutOfMemory.code else AttemptEnd.MACHINE
        lease_ends.lose(tx, locked, end, error.message, retries, computing=computing, error=error)
        if computing is None:
            lost_work.count_job_crash(tx, job_id, error, retries)
        lost_work.settle_if_cancelling(tx, job_id)


# -- shared --------------------------------------------------------------------------------------------------------


@contextmanager
def fenced(db: Database, lease_id: str, *, is_shared: bool = False) -> Iterator[tuple[Transaction, Lease]]:
    """Open a transaction that keeps an active lease's row locked. All that a holder records is written in one of these.

    Args:
        is_shared: Lock the row only against the lease's end. Other transactions of the holder, and its heartbeats, do
            not wait for this one.

    Raises:
        LostLease: The lease is no longer active.
    """
    with db.write() as tx:
        query = select(Lease).where(_is_active(lease_id))
        lease = tx.scalar(query.with_for_update(read=is_shared, key_share=is_shared))
        if lease is None:
            raise LostLease
        yield tx, lease


def lock_active(session: Session, lease_id: str) -> Locked:
    """Lock an active lease, with its gang.

    Raises:
        LostLease: The lease is no longer active.
    """
    found = lease_ends.lock(session, _is_active(lease_id))
    if not found:
        raise LostLease
    return found[0]


def _is_active(lease_id: str) -> ColumnElement[bool]:
    """The condition that a row is this lease's, which is active."""
    return and_(col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
