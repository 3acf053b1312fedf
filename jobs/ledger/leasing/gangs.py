"""Gangs: the leases of one training on several slots. Members hold their slots, and the leader computes.

A gang's leases are granted together and end together (`lease_ends`). Rank 0 is the leader: it alone computes, on the
devices of all slots. The workers of the other slots hold their leases and only keep their devices free.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, LeaseState
from jobs.db.tables import Lease, Slot
from jobs.errors import LostLease
from jobs.ledger.leasing.leases import fenced


@dataclass(frozen=True, slots=True)
class GangStatus:
    """What the holder of a gang's lease must notice at once."""

    is_active: bool
    """Whether the lease is still active."""
    shutdown_asked: bool
    """Whether a member's worker is shutting down, so that the training must stop soon, with a checkpoint."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a gang: its slot, and whether it is ready."""

    rank: int
    slot_id: str
    device_uuid: str | None
    num_threads: int
    is_live: bool
    """Whether its lease has not ended."""
    is_held: bool
    """Whether its device is free for the leader's processes. The leader's own is free once its lease is active."""


def mark_held(db: Database, lease_id: str) -> None:
    """Record that a member's device is free. The leader begins once all devices are.

    Raises:
        LostLease: The lease is no longer active.
    """
    with fenced(db, lease_id) as (tx, lease):
        lease.held_at = tx.time()
        tx.record(lease.job_id, "lease.held", lease=lease.id, slot=lease.slot_id, rank=lease.rank)


def read_status(db: Database, lease_id: str) -> GangStatus:
    """Read the status of one lease. One query by primary key, cheap enough for several calls a second."""
    status = select(col(Lease.state), col(Lease.shutdown_asked)).where(col(Lease.id) == lease_id)
    with db.read() as session:
        row = session.execute(status).one_or_none()
    if row is None:
        return GangStatus(is_active=False, shutdown_asked=False)
    return GangStatus(row.state == LeaseState.ACTIVE, row.shutdown_asked)


def ranks(db: Database, lease_id: str) -> tuple[Rank, ...]:
    """The ranks of a lease's gang, in order; for a lease without a gang, a single rank with its slot."""
    ours = aliased(Lease)
    same = (col(Lease.id) == ours.id) | (col(Lease.gang_id) == ours.gang_id)
    found = (
        select(Lease, Slot)
        .join(ours, same)
        .join(Slot, col(Slot.id) == col(Lease.slot_id))
        .where(ours.id == lease_id)  # type: ignore[arg-type]
        .order_by(col(Lease.rank))
    )
    with db.read() as session:
        return tuple(
            Rank(
                lease.rank,
                slot.id,
                slot.device_uuid,
                slot.num_threads,
                is_live=lease.state in LIVE_LEASE_STATES,
                is_held=lease.state == LeaseState.ACTIVE and (lease.rank == 0 or lease.held_at is not None),
            )
            for lease, slot in session.execute(found)
        )


def ask_shutdown(db: Database, lease_id: str) -> None:
    """Ask the leader of a lease's gang to stop soon, with a checkpoint, since this member's worker is shutting down.

    Raises:
        LostLease: The lease is no longer live.
    """
    gang = select(col(Lease.gang_id)).where(col(Lease.id) == lease_id, col(Lease.state).in_(LIVE_LEASE_STATES))
    request = (
        update(Lease)
        .where(col(Lease.gang_id).in_(gang), col(Lease.rank) == 0, col(Lease.state).in_(LIVE_LEASE_STATES))
        .values(shutdown_asked=True)
    )
    with db.write() as tx:
        if not tx.changed(request):
            raise LostLease
