"""Lease and chunk verbs: grant, activate, claim, renew, commit, give back, release, expire. The fencing lives here.

Every verb is one short transaction. Rows are locked in one order everywhere, leases by their ids, then chunks, then
job, so that two verbs can never wait for each other in a circle. A lease counts as live until a verb ends it in the
database: its holder may commit a moment late as long as nobody else was given its work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from sqlalchemy import CursorResult, case, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs import history, lease_ends, losses
from jobs.database import Database
from jobs.errors import Conflict, DeviceOutOfMemory, LostLease, StokerError
from jobs.ids import new_id
from jobs.lease_ends import Locked
from jobs.rows import Result, RowError
from jobs.settings import Settings
from jobs.specs import TRAINING
from jobs.states import AttemptEnd, ChunkState, JobState, LeaseState, SlotState
from jobs.tables import Attempt, Chunk, Job, Lease, Slot

_WORKABLE = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Grant:
    """A decision to give a job some slots at once."""

    job_id: str
    slot_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkingLease:
    """What the holder of an active lease needs to know."""

    lease_id: str
    job_id: str
    slot_id: str
    kind: str
    spec: dict[str, Any]
    attempt: int
    rank: int
    gang_id: str | None = None
    """None where the lease stands alone."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that the lease now owns."""

    start_row: int
    stop_row: int
    locator: dict[str, Any]
    attempt: int
    crashes: int
    verdict: RowError | None = None
    """Set when this chunk was given up: record this error for each of its rows instead of computing them."""


@dataclass(frozen=True, slots=True)
class ChunkResults:
    """A computed chunk, ready to be recorded."""

    start_row: int
    stop_row: int
    results: Sequence[Result]
    """One for each row, in row order."""
    part: str | None = None
    """Store key of its file part, for file sinks."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat brings back."""

    stop: str | None
    """None, `yield` (give the lease back at the next chunk boundary), `cancel` (stop at once) or, of a training,
    `shutdown` (stop soon, with a checkpoint)."""


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell that has to be rung (again)."""

    lease_id: str
    slot_id: str


# -- the scheduler's verbs -----------------------------------------------------------------------------------------


def grant(db: Database, grant: Grant, *, lease_seconds: float) -> list[str]:
    """Write the leases of a grant, all or none; the doorbells are rung after this commits.

    Returns:
        The lease ids, in the order of `grant.slot_ids`.

    Raises:
        Conflict: the job or one of the slots is not free any more; nothing was written.
    """
    try:
        with db.write() as session:
            now = db.time(session)
            online = select(func.count()).where(col(Slot.id).in_(grant.slot_ids), col(Slot.state) == SlotState.ONLINE)
            if session.scalar(online) != len(set(grant.slot_ids)):
                raise Conflict(f"a slot of {', '.join(grant.slot_ids)} is not online")
            attempt = _last_attempt(session, grant.job_id) + 1
            gang_id = new_id("gang") if len(grant.slot_ids) > 1 else None
            lease_ids = [new_id("lease") for _ in grant.slot_ids]
            for rank, (lease_id, slot_id) in enumerate(zip(lease_ids, grant.slot_ids, strict=True)):
                session.add(
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
            session.flush()
            started = (
                update(Job)
                .where(col(Job.id) == grant.job_id, col(Job.state).in_(_WORKABLE))
                .values(state=JobState.RUNNING, started_at=func.coalesce(Job.started_at, now))
            )
            if _changed(session, started) != 1:
                raise Conflict(f"job {grant.job_id} is not waiting for slots")
            for lease_id, slot_id in zip(lease_ids, grant.slot_ids, strict=True):
                history.record(session, db, grant.job_id, "lease.granted", lease=lease_id, slot=slot_id)
        return lease_ids
    except IntegrityError as error:
        raise Conflict(f"a slot of {', '.join(grant.slot_ids)} already has a live lease") from error


def ask_yield(db: Database, lease_ids: Sequence[str]) -> None:
    """Ask the holders of live leases to give them back: at the next chunk boundary, or a training's next step."""
    with db.write() as session:
        for locked in lease_ends.lock(session, col(Lease.id).in_(lease_ids)):
            for lease in (locked.lease, *locked.mates):  # a gang yields whole
                lease.yield_asked = True


def unanswered(db: Database, settings: Settings) -> list[Ring]:
    """Granted leases whose doorbell has to ring again; one that was rung too often ends, and its slot goes offline."""
    with db.write() as session:
        now = db.time(session)
        is_late = (col(Lease.state) == LeaseState.GRANTED, col(Lease.rung_at) <= now - settings.doorbell_seconds)
        rung = []
        for locked in lease_ends.lock(session, *is_late):
            lease = locked.lease
            if not locked.is_live:
                continue  # its gang has ended just now
            if lease.rings >= settings.doorbell_rings:
                reason = f"the doorbell was not answered {lease.rings} times"
                _expire_lost(session, db, locked, AttemptEnd.LOST, reason, settings)
                silent = update(Slot).where(col(Slot.id) == lease.slot_id, col(Slot.state) == SlotState.ONLINE)
                session.execute(silent.values(state=SlotState.OFFLINE, reason=reason))
            else:
                lease.rings, lease.rung_at, lease.expires_at = lease.rings + 1, now, now + settings.lease_seconds
                rung.append(locked)
        return [Ring(locked.lease.id, locked.lease.slot_id) for locked in rung if locked.is_live]


def expire_dead(db: Database, settings: Settings) -> list[str]:
    """End active leases that were not renewed in time, with their gangs; their chunks are pending again.

    Returns:
        The ids of the leases that ended.
    """
    with db.write() as session:
        is_dead = (col(Lease.state) == LeaseState.ACTIVE, col(Lease.expires_at) < db.time(session))
        ended: list[str] = []
        for locked in lease_ends.lock(session, *is_dead):
            if locked.is_live:
                ended += expire(session, db, locked, "it was not renewed in time", settings)
        return ended


def expire(session: Session, db: Database, locked: Locked, reason: str, settings: Settings) -> list[str]:
    """End one live lease whose holder is gone, and its gang, in the caller's transaction; its chunks are pending again.

    Returns:
        The ids of the leases that ended.
    """
    ended = _expire_lost(session, db, locked, AttemptEnd.LOST, reason, settings)
    losses.settle_if_cancelling(session, db, locked.lease.job_id)
    return [lease.id for lease in ended]


def withdraw(session: Session, db: Database, slot_ids: Sequence[str], reason: str) -> None:
    """End the leases that nobody on these slots has taken up yet, in the caller's transaction."""
    is_new = (col(Lease.slot_id).in_(slot_ids), col(Lease.state) == LeaseState.GRANTED)
    for locked in lease_ends.lock(session, *is_new):
        if locked.is_live:
            revoke(session, db, locked, reason)
            losses.settle_if_cancelling(session, db, locked.lease.job_id)


def revoke(session: Session, db: Database, locked: Locked, reason: str) -> None:
    """Take one live lease back that nobody has begun to work on, and its gang, in the caller's transaction."""
    for lease in lease_ends.end(session, db, locked, LeaseState.REVOKED, reason):
        _return_chunks(session, lease.id, None)
    losses.end_attempt(session, db, locked.lease, AttemptEnd.LOST, reason)


# -- the keeper's verbs --------------------------------------------------------------------------------------------


def activate(db: Database, lease_id: str, incarnation: str, *, lease_seconds: float) -> WorkingLease | None:
    """Take up a granted lease.

    Returns:
        The lease, or None where the message is a duplicate or too late and must be dropped.
    """
    with db.write() as session:
        now = db.time(session)
        found = lease_ends.lock(session, col(Lease.id) == lease_id, col(Lease.state) == LeaseState.GRANTED)
        if not found:
            return None
        lease = found[0].lease
        job = session.get_one(Job, lease.job_id)
        if job.state != JobState.RUNNING:
            revoke(session, db, found[0], f"the job was {job.state} already")
            losses.settle_if_cancelling(session, db, job.id)
            return None
        lease.state, lease.incarnation = LeaseState.ACTIVE, incarnation
        lease.activated_at, lease.expires_at = now, now + lease_seconds
        history.record(session, db, job.id, "lease.active", lease=lease.id, slot=lease.slot_id, attempt=lease.attempt)
        return WorkingLease(
            lease.id, job.id, lease.slot_id, job.kind, job.spec, lease.attempt, lease.rank, lease.gang_id
        )


def renew(db: Database, lease_id: str, *, lease_seconds: float) -> Renewal:
    """The heartbeat: prolong an active lease and learn whether its holder is to stop.

    Raises:
        LostLease: the lease is not active any more; whatever its holder runs must end now.
    """
    with db.write() as session:
        renewed = (
            update(Lease)
            .where(col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
            .values(expires_at=db.now() + lease_seconds)
            .returning(col(Lease.job_id), col(Lease.yield_asked), col(Lease.shutdown_asked))
        )
        row = session.execute(renewed).one_or_none()
        if row is None:
            raise LostLease
        job = session.execute(select(col(Job.state), col(Job.kind)).where(col(Job.id) == row.job_id)).one()
    if job.kind == TRAINING and job.state in (JobState.CANCELLING, JobState.EXPIRED):
        return Renewal("shutdown")  # with a checkpoint, which a retry goes on from
    if job.state not in (JobState.RUNNING, JobState.FINALIZING):
        return Renewal("cancel")
    if row.shutdown_asked:
        return Renewal("shutdown")
    return Renewal("yield" if row.yield_asked else None)


def release(db: Database, lease_id: str, reason: str, *, error: StokerError | None = None) -> None:
    """Give a lease back in order, with its gang; chunks it still holds are pending again, their attempt not counted.

    Args:
        reason: in words.
        error: of the machine, where that is why.

    Raises:
        LostLease: the lease was not active any more.
    """
    with db.write() as session:
        locked = _lock_active(session, lease_id)
        lease = locked.lease
        ended = lease_ends.end(session, db, locked, LeaseState.RELEASED, reason)
        losses.end_attempt(session, db, lease, _attempt_end(session, lease, error), reason)
        for one in ended:
            _return_chunks(session, one.id, None)
        losses.settle_if_cancelling(session, db, lease.job_id)


def crash(db: Database, lease_id: str, error: StokerError, *, computing: int | None, settings: Settings) -> None:
    """End an active lease whose runner died.

    Args:
        error: how it died.
        computing: first row of the chunk that was being computed, which is blamed: it is cut in two after
            `settings.chunk_crashes` deaths, until the row that kills is alone and becomes a row error. None: the death
            is the job's (loading the model, say), which fails after `settings.job_crashes` of them in a row.

    Raises:
        LostLease: the lease was not active any more; somebody else has dealt with its work already.
    """
    with db.write() as session:
        locked = _lock_active(session, lease_id)
        job_id = locked.lease.job_id
        end = AttemptEnd.OUT_OF_MEMORY if error.code == DeviceOutOfMemory.code else AttemptEnd.MACHINE
        _expire_lost(session, db, locked, end, error.message, settings, computing=computing, error=error)
        if computing is None:
            losses.count_job_crash(session, db, job_id, error, settings)
        losses.settle_if_cancelling(session, db, job_id)


# -- the runner's verbs --------------------------------------------------------------------------------------------


def claim(db: Database, lease_id: str, *, limit: int) -> list[Claim]:
    """Take up to `limit` pending chunks of the lease's job, lowest rows first.

    Returns:
        The chunks; none where nothing is pending, the job is ending, or the lease is asked to yield.

    Raises:
        LostLease: the lease is not active any more.
    """
    with db.write() as session:
        lease = hold(session, lease_id)
        if (
            lease.yield_asked
            or session.scalar(select(col(Job.state)).where(col(Job.id) == lease.job_id)) != JobState.RUNNING
        ):
            return []
        pending = (
            select(Chunk)
            .where(
                col(Chunk.job_id) == lease.job_id,
                col(Chunk.state) == ChunkState.PENDING,
                col(Chunk.not_before) <= db.now(),
            )
            .order_by(col(Chunk.start_row))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        chunks = list(session.scalars(pending))
        for chunk in chunks:
            chunk.state, chunk.lease_id = ChunkState.LEASED, lease_id
        if chunks:
            starts = [chunk.start_row for chunk in chunks]
            history.record(
                session, db, lease.job_id, "chunks.claimed", lease=lease_id, slot=lease.slot_id, start_rows=starts
            )
        return [_as_claim(chunk) for chunk in chunks]


def commit(
    db: Database, lease_id: str, chunks: Sequence[ChunkResults], record: Callable[[Session], None] | None = None
) -> None:
    """Record computed chunks exactly once: results, chunk states and counters, fenced by the lease, in one transaction.

    Args:
        chunks: chunks this lease claimed, each with one result for each of its rows.
        record: writes the results into the sink's tables, called inside the transaction after the fence.

    Raises:
        LostLease: the lease is not the live owner of all of them any more, or the job has ended; nothing was recorded.
        ServiceUnavailable: the database went away; if it did so while committing, the outcome is unknown until the
            chunks are read back.
    """
    for chunk in chunks:
        if [result.row_index for result in chunk.results] != list(range(chunk.start_row, chunk.stop_row)):
            raise ValueError(f"chunk {chunk.start_row}: its results are not one for each row, in row order")
    with db.write() as session:
        lease = hold(session, lease_id)
        for chunk in chunks:
            _finish_chunk(session, lease, chunk)
        if record is not None:
            record(session)
        _count(session, db, lease, [result for chunk in chunks for result in chunk.results], len(chunks))


def give_back(db: Database, lease_id: str, start_rows: Sequence[int]) -> None:
    """Make claimed chunks pending again that were not computed; their attempt does not count.

    Raises:
        LostLease: the lease is not active any more; its chunks are pending already.
    """
    with db.write() as session:
        lease = hold(session, lease_id)
        _return_chunks(session, lease.id, start_rows)


def chunk_failed(db: Database, lease_id: str, start_row: int, error: StokerError, settings: Settings) -> None:
    """Deal with a claimed chunk that an error of the machine kept from being computed: later again, or given up.

    Raises:
        LostLease: the lease does not own the chunk any more.
    """
    with db.write() as session:
        lease = hold(session, lease_id)
        chunk = session.get(Chunk, (lease.job_id, start_row), with_for_update=True)
        if chunk is None or chunk.state != ChunkState.LEASED or chunk.lease_id != lease_id:
            raise LostLease
        losses.retry_or_give_up(session, db, chunk, error, settings)


# -- what they share -----------------------------------------------------------------------------------------------


def hold(session: Session, lease_id: str) -> Lease:
    """The active lease, its row locked until the transaction ends: the fence of everything that is recorded under it.

    Raises:
        LostLease: it is not active any more.
    """
    held = select(Lease).where(col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
    lease = session.scalar(held.with_for_update())
    if lease is None:
        raise LostLease
    return lease


def _lock_active(session: Session, lease_id: str) -> Locked:
    found = lease_ends.lock(session, col(Lease.id) == lease_id, col(Lease.state) == LeaseState.ACTIVE)
    if not found:
        raise LostLease
    return found[0]


def _last_attempt(session: Session, job_id: str) -> int:
    """The number of a job's latest attempt: of a training those that began, of another kind every grant."""
    kind = session.scalar(select(col(Job.kind)).where(col(Job.id) == job_id))
    number, owner = (Attempt.number, Attempt.job_id) if kind == TRAINING else (Lease.attempt, Lease.job_id)
    return session.scalar(select(func.max(number)).where(col(owner) == job_id)) or 0


def _expire_lost(
    session: Session,
    db: Database,
    locked: Locked,
    end: AttemptEnd,
    reason: str,
    settings: Settings,
    *,
    computing: int | None = None,
    error: StokerError | None = None,
) -> list[Lease]:
    """End a lease whose holder is lost, and its gang: one end of an attempt, and every chunk pending again."""
    ended = lease_ends.end(session, db, locked, LeaseState.EXPIRED, reason)
    losses.end_attempt(session, db, locked.lease, end, reason)
    for lease in ended:
        blamed = computing if lease is locked.lease else None
        losses.return_lost_chunks(session, db, lease, settings, computing=blamed, error=error)
    return ended


def _attempt_end(session: Session, lease: Lease, error: StokerError | None) -> AttemptEnd:
    """Why the attempt of a lease that is given back has ended."""
    job = session.get_one(Job, lease.job_id)
    match job.state:
        case JobState.FAILED:
            is_memory = job.error_code == DeviceOutOfMemory.code
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


def _return_chunks(session: Session, lease_id: str, start_rows: Sequence[int] | None) -> None:
    held = update(Chunk).where(col(Chunk.lease_id) == lease_id, col(Chunk.state) == ChunkState.LEASED)
    if start_rows is not None:
        held = held.where(col(Chunk.start_row).in_(start_rows))
    session.execute(held.values(state=ChunkState.PENDING, lease_id=None))


def _finish_chunk(session: Session, lease: Lease, chunk: ChunkResults) -> None:
    finished = (
        update(Chunk)
        .where(
            col(Chunk.job_id) == lease.job_id,
            col(Chunk.start_row) == chunk.start_row,
            col(Chunk.stop_row) == chunk.stop_row,
            col(Chunk.state) == ChunkState.LEASED,
            col(Chunk.lease_id) == lease.id,
        )
        .values(
            state=case((col(Chunk.error).is_(None), ChunkState.DONE.value), else_=ChunkState.FAILED.value),
            part=chunk.part,
        )
    )
    if _changed(session, finished) != 1:
        raise LostLease


def _count(session: Session, db: Database, lease: Lease, results: Sequence[Result], num_chunks: int) -> None:
    """Add to the job's counters; its row is locked last and shortly, and the last one in sees every other commit."""
    num_failed = sum(result.error is not None for result in results)
    counted = (
        update(Job)
        .where(col(Job.id) == lease.job_id, col(Job.state).in_((JobState.RUNNING, JobState.CANCELLING)))
        .values(
            num_done=Job.num_done + len(results),
            num_failed=Job.num_failed + num_failed,
            num_tokens=Job.num_tokens + sum(result.num_tokens for result in results),
            crashes=0,
        )
        .returning(col(Job.num_done), col(Job.num_rows), col(Job.state))
    )
    row = session.execute(counted).one_or_none()
    if row is None:
        raise LostLease("the job has ended")
    history.record(
        session, db, lease.job_id, "chunks.done", lease=lease.id, slot=lease.slot_id, chunks=num_chunks,
        rows=len(results), failed=num_failed, done=row.num_done, total=row.num_rows,
    )  # fmt: skip
    if row.num_done == row.num_rows and row.state == JobState.RUNNING:
        session.execute(update(Job).where(col(Job.id) == lease.job_id).values(state=JobState.FINALIZING))
        history.record(session, db, lease.job_id, "job.finalizing")


def _as_claim(chunk: Chunk) -> Claim:
    verdict = None if chunk.error is None else RowError(**orjson.loads(chunk.error))
    return Claim(chunk.start_row, chunk.stop_row, chunk.locator, chunk.attempt, chunk.crashes, verdict)


def _changed(session: Session, statement: Any) -> int:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
