"""Grants: the leases that the scheduler decided on, written for a whole pass in few transactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, case, delete, func, select, update
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import moving
from jobs.db.states import JobState, LeaseState, SlotState
from jobs.db.tables import IS_LIVE, Attempt, Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.errors import Conflict
from jobs.specs.inference import TRAINING

_WORKABLE = (JobState.QUEUED, JobState.RUNNING)
_LEASES_AT_ONCE = 250  # leases written in one transaction, so that others do not wait long for SQLite's write lock


@dataclass(frozen=True, slots=True)
class Grant:
    """A decision to give a job some slots at once."""

    job_id: str
    slot_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell that must be rung, possibly again."""

    lease_id: str
    slot_id: str


@dataclass(frozen=True, slots=True)
class Granted:
    """What one transaction wrote."""

    rings: tuple[Ring, ...]
    """The doorbells to ring: one for each lease, in the order of the grants and of their slots."""
    conflicts: tuple[Conflict, ...]
    """Why the other grants were not written: the job or a slot of each was no longer free."""


def grant_all(db: Database, grants: Sequence[Grant], *, lease_seconds: float) -> Iterator[Granted]:
    """Create the leases of many grants: of each grant all or none, and a grant that comes too late concerns no other.

    Args:
        grants: Decisions of one pass; no slot is in two of them.

    Yields:
        What each transaction wrote, after its commit. The caller rings these doorbells before it continues, so that
        the first slots start while the other leases are still being written.
    """
    for some in _in_transactions(grants):
        with db.write() as tx:
            granted = write(tx, some, lease_seconds=lease_seconds)
        yield granted


def grant(db: Database, grant: Grant, *, lease_seconds: float) -> list[str]:
    """Create the leases of a single grant, all or none. The caller rings the doorbells.

    Returns:
        The ids of the leases, in the order of `grant.slot_ids`.

    Raises:
        Conflict: The job or one of the slots is no longer free; nothing was written.
    """
    (granted,) = grant_all(db, [grant], lease_seconds=lease_seconds)
    for conflict in granted.conflicts:
        raise conflict
    return [ring.lease_id for ring in granted.rings]


def _in_transactions(grants: Sequence[Grant]) -> list[list[Grant]]:
    found: list[list[Grant]] = []
    num_leases = _LEASES_AT_ONCE
    for one in grants:
        if num_leases + len(one.slot_ids) > _LEASES_AT_ONCE:
            found.append([])
            num_leases = 0
        found[-1].append(one)
        num_leases += len(one.slot_ids)
    return found


def write(tx: Transaction, grants: Sequence[Grant], *, lease_seconds: float) -> Granted:
    """Create the leases of grants in the caller's transaction; see `grant_all`."""
    conflicts: dict[Grant, Conflict] = {}
    attempts = _last_attempts(tx, grants)
    online, busy = _slot_states(tx, grants)
    leases: dict[Grant, list[dict[str, Any]]] = {}
    now = tx.time()
    for one in grants:
        if one.job_id not in attempts:
            conflicts[one] = _not_waiting(one)
        elif not online.issuperset(one.slot_ids):
            conflicts[one] = Conflict(f"one of the slots {', '.join(one.slot_ids)} is not online")
        elif busy.intersection(one.slot_ids):
            conflicts[one] = _not_free(one)
        else:
            attempts[one.job_id] += 1
            leases[one] = _new_leases(one, attempts[one.job_id], now, lease_seconds)
    # What was read above may have changed since: another leader may write the same decision. The index of live leases
    # and the locks on the jobs decide. Leases before jobs, and jobs in the order of their ids, as everywhere.
    written = _insert(tx, [lease for of_grant in leases.values() for lease in of_grant])
    waiting = _lock_waiting(tx, {one.job_id for one in leases})
    for one, of_grant in leases.items():
        if one.job_id not in waiting:
            conflicts[one] = _not_waiting(one)
        elif not written.issuperset(lease["id"] for lease in of_grant):
            conflicts[one] = _not_free(one)
    withdrawn = [lease["id"] for one in conflicts for lease in leases.pop(one, ())]
    if withdrawn:
        tx.execute(delete(Lease).where(col(Lease.id).in_(withdrawn)))
    if leases:
        _start(tx, {one.job_id: of_grant[0]["attempt"] for one, of_grant in leases.items()}, now)
    kept = [lease for of_grant in leases.values() for lease in of_grant]
    tx.record_all(
        "lease.granted", [(lease["job_id"], {"lease": lease["id"], "slot": lease["slot_id"]}) for lease in kept]
    )
    return Granted(tuple(Ring(lease["id"], lease["slot_id"]) for lease in kept), tuple(conflicts.values()))


def _last_attempts(tx: Transaction, grants: Sequence[Grant]) -> dict[str, int]:
    """The number of the latest attempt of each job that waits for slots, 0 before the first.

    For a training, only attempts that began count; otherwise every grant.
    """
    began = select(func.max(Attempt.number)).where(col(Attempt.job_id) == col(Job.id)).scalar_subquery()
    granted = case((col(Job.started_at).is_not(None), col(Job.attempt)))
    last = func.coalesce(case((col(Job.kind) == TRAINING, began), else_=granted), 0)
    query = select(col(Job.id), last).where(
        col(Job.id).in_({one.job_id for one in grants}), col(Job.state).in_(_WORKABLE)
    )
    return {row[0]: row[1] for row in tx.execute(query)}


def _slot_states(tx: Transaction, grants: Sequence[Grant]) -> tuple[set[str], set[str]]:
    """Which of the slots are online, and which have a live lease."""
    slot_ids = [slot_id for one in grants for slot_id in one.slot_ids]
    online = select(col(Slot.id)).where(col(Slot.id).in_(slot_ids), col(Slot.state) == SlotState.ONLINE)
    busy = select(col(Lease.slot_id)).where(col(Lease.slot_id).in_(slot_ids), IS_LIVE)
    return set(tx.scalars(online)), set(tx.scalars(busy))


def _new_leases(grant: Grant, attempt: int, now: float, lease_seconds: float) -> list[dict[str, Any]]:
    gang_id = new_id("gang") if len(grant.slot_ids) > 1 else None
    return [
        {
            "id": new_id("lease"),
            "job_id": grant.job_id,
            "slot_id": slot_id,
            "state": LeaseState.GRANTED,
            "gang_id": gang_id,
            "rank": rank,
            "attempt": attempt,
            "yield_asked": False,
            "shutdown_asked": False,
            "rings": 1,
            "granted_at": now,
            "rung_at": now,
            "expires_at": now + lease_seconds,
        }
        for rank, slot_id in enumerate(grant.slot_ids)
    ]


def _insert(tx: Transaction, leases: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert the leases whose slots have no live lease, and return their ids."""
    if not leases:
        return set()
    statement = tx.insert(Lease).on_conflict_do_nothing().returning(col(Lease.id))
    return set(tx.execute(statement, sorted(leases, key=lambda lease: lease["slot_id"])).scalars())


def _lock_waiting(tx: Transaction, job_ids: set[str]) -> set[str]:
    """Lock those of the jobs that wait for slots, and return their ids."""
    waiting = select(col(Job.id)).where(col(Job.id).in_(job_ids), col(Job.state).in_(_WORKABLE))
    return set(tx.scalars(waiting.order_by(col(Job.id)).with_for_update(key_share=True)))


def _start(tx: Transaction, attempts: Mapping[str, int], now: float) -> None:
    """Set the locked jobs to `running`, each with the number of its latest attempt."""
    started = moving(Job, _WORKABLE, JobState.RUNNING).where(col(Job.id).in_(list(attempts)))
    tx.execute(started.values(started_at=func.coalesce(Job.started_at, now)))
    numbered = update(Job).where(col(Job.id) == bindparam("granted_job")).values(attempt=bindparam("number"))
    tx.connection().execute(
        numbered, [{"granted_job": job_id, "number": number} for job_id, number in attempts.items()]
    )


def _not_waiting(grant: Grant) -> Conflict:
    return Conflict(f"job {grant.job_id} is not waiting for slots")


def _not_free(grant: Grant) -> Conflict:
    return Conflict(f"one of the slots {', '.join(grant.slot_ids)} already has a live lease")
