"""Changes of leases: those of the scheduler, those of a lease's holder, and `fenced` for whatever a holder records.

Every function is one short transaction. All transactions lock rows in the same order (leases by their ids, then chunks,
then the job), so that two of them can never deadlock. A lease counts as live until one of these functions ends it in
the database: its holder may still commit after `expires_at`, as long as no other lease was given its work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.config.times import LeaseTimes, RetryTimes
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move, moving
from jobs.db.states import AttemptEnd, JobState, LeaseState, SlotState, StopReason
from jobs.db.tables import Attempt, Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, DeviceOutOfMemory, InvalidSpec, LostLease, ModelTooLarge, StokerError
from jobs.ledger import lease_ends, lost_work
from jobs.ledger.lease_ends import Locked
from jobs.specs.inference import TRAINING, JobSpec, parse_spec

_WORKABLE = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Grant:
    """A decision to give a job some slots at once."""

    job_id: str
    slot_ids: tuple[str, ...]


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
    """None for a lease that belongs to no gang."""
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


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell that must be rung, possibly again."""

    lease_id: str
    slot_id: str


# -- for the scheduler ---------------------------------------------------------------------------------------------


def grant(db: Database, grant: Grant, *, lease_seconds: float) -> list[str]:
    """Create the leases of a grant, all or none. The caller rings the doorbells after this has committed.

    Returns:
        The ids of the leases, in the order of `grant.slot_ids`.

    Raises:
        Conflict: The job or one of the slots is no longer free; nothing was written.
    """
    try:
        with db.write() as tx:
            now = tx.time()
            online = select(func.count()).where(col(Slot.id).in_(grant.slot_ids), col(Slot.state) == SlotState.ONLINE)
            if tx.scalar(online) != len(set(grant.slot_ids)):
                raise Conflict(f"a slot of {', '.join(grant.slot_ids)} is not online")
            attempt = _last_attempt(tx, grant.job_id) + 1
            gang_id = new_id("gang") if len(grant.slot_ids) > 1 else None
            lease_ids = [new_id("lease") for _ in grant.slot_ids]
            for rank, (lease_id, slot_id) in enumerate(zip(lease_ids, grant.slot_ids, strict=True)):
                tx.add(
                    Lease(
                        id=lease_id,
                        job_id=grant.job_id,
                        slot_id=slot_id,
                        state=LeaseState.GRANTED,
                        gang_id=gang_id,
                        rank=rank,
                        attempt=attempt,
                        rings=1,
                        granted_at=now,
                        rung_at=now,
                        expires_at=now + lease_seconds,
                    )
                )
            tx.flush()
            started = (
                moving(Job, _WORKABLE, JobState.RUNNING)
                .where(col(Job.id) == grant.job_id)
                .values(started_at=func.coalesce(Job.started_at, now), attempt=attempt)
            )
            if tx.changed(started) != 1:
                raise Conflict(f"job {grant.job_id} is not waiting for slots")
            for lease_id, slot_id in zip(lease_ids, grant.slot_ids, strict=True):
                tx.record(grant.job_id, "lease.granted", lease=lease_id, slot=slot_id)
        return lease_ids
    except IntegrityError as error:
        raise Conflict(f"a slot of {', '.join(grant.slot_ids)} already has a live lease") from error


def ask_yield(db: Database, lease_ids: Sequence[str]) -> None:
    """Ask the holders of live leases to return them: after the current chunk, or after a training's next step."""
    with db.write() as tx:
        for locked in lease_ends.lock(tx, col(Lease.id).in_(lease_ids)):
            for lease in (locked.lease, *locked.mates):  # a gang yields as a whole
                lease.yield_asked = True


def unanswered(db: Database, times: LeaseTimes) -> list[Ring]:
    """Find granted leases whose doorbell must ring again. One that was rung too often ends, and its slot is unheard."""
    with db.write() as tx:
        now = tx.time()
        is_late = (col(Lease.state) == LeaseState.GRANTED, col(Lease.rung_at) <= now - times.doorbell_seconds)
        rung = []
        for locked in lease_ends.lock(tx, *is_late):
            lease = locked.lease
            if not locked.is_live:
                continue  # its gang ended earlier in this loop
            if lease.rings >= times.doorbell_rings:
                reason = f"the doorbell was not answered {lease.rings} times"
                lease_ends.lose(tx, locked, AttemptEnd.LOST, reason, times)
                silent = moving(Slot, SlotState.ONLINE, SlotState.UNHEARD).where(col(Slot.id) == lease.slot_id)
                tx.execute(silent.values(reason=reason))
            else:
                lease.rings, lease.rung_at, lease.expires_at = lease.rings + 1, now, now + times.lease_seconds
                rung.append(locked)
        return [Ring(locked.lease.id, locked.lease.slot_id) for locked in rung if locked.is_live]


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
        locked = _lock_active(tx, lease_id)
        lease = locked.lease
        ended = lease_ends.end(tx, locked, LeaseState.RELEASED, reason)
        lost_work.end_attempt(tx, lease, _attempt_end(tx, lease, error), reason)
        for one in ended:
            lost_work.return_chunks(tx, one.id)
        lost_work.settle_if_cancelling(tx, lease.job_id)


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
        locked = _lock_active(tx, lease_id)
        job_id = locked.lease.job_id
        end = AttemptEnd.OUT_OF_MEMORY if error.code == DeviceOutOfMemory.code else AttemptEnd.MACHINE
        lease_ends.lose(tx, locked, end, error.message, retries, computing=computing, error=error)
        if computing is None:
            lost_work.count_job_crash(tx, job_id, error, retries)
        lost_work.settle_if_cancelling(tx, job_id)


# -- shared --------------------------------------------------------------------------------------------------------


@contextmanager
def fenced(db: Database, lease_id: str) -> Iterator[tuple[Transaction, Lease]]:
    """Open a transaction that keeps an active lease's row locked. All that a holder records is written in one of these.

    Raises:
        LostLease: The lease is not active any more.
    """
    with db.write() as tx:
        held = select(Lease).where(col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
        lease = tx.scalar(held.with_for_update())
        if lease is None:
            raise LostLease
        yield tx, lease


def _lock_active(session: Session, lease_id: str) -> Locked:
    found = lease_ends.lock(session, col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
    if not found:
        raise LostLease
    return found[0]


def _last_attempt(session: Session, job_id: str) -> int:
    """The number of a job's latest attempt. For a training, only attempts that began count; otherwise every grant."""
    kind = session.scalar(select(col(Job.kind)).where(col(Job.id) == job_id))
    number, owner = (Attempt.number, Attempt.job_id) if kind == TRAINING else (Lease.attempt, Lease.job_id)
    return session.scalar(select(func.max(number)).where(col(owner) == job_id)) or 0


def _attempt_end(session: Session, lease: Lease, error: StokerError | None) -> AttemptEnd:
    """Why the attempt of a released lease ended."""
    job = session.get_one(Job, lease.job_id)
    match job.state:
        case JobState.FAILED:
            is_memory = job.error_code in (ModelTooLarge.code, DeviceOutOfMemory.code)
            return AttemptEnd.OUT_OF_MEMORY if is_memory else AttemptEnd.USER_ERROR
        case JobState.EXPIRED:
            return AttemptEnd.TIME_LIMIT
        case JobState.CANCELLING | JobState.CANCELLED:
            return AttemptEnd.CANCELLED
        case JobState.FINALIZING | JobState.COMPLETED:
            return AttemptEnd.COMPLETED
        case _ if error is not None:
            return AttemptEnd.MACHINE
        case _:
            return AttemptEnd.PREEMPTED if lease.yield_asked else AttemptEnd.SHUTDOWN
