"""Slot verbs: which slots there are, which worker process owns each, and which have fallen silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlmodel import col

from jobs.config.times import RetryTimes
from jobs.db.database import Database
from jobs.db.moves import moving
from jobs.db.states import LeaseState, SlotState
from jobs.db.tables import Lease, Slot
from jobs.ledger import lease_ends, lost_work

_REACHABLE = (SlotState.ONLINE, SlotState.UNHEARD, SlotState.BROKEN)


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """What is known of a slot before its worker runs."""

    id: str
    host: str
    device: str
    """`cuda` or `cpu`."""
    device_uuid: str | None
    """`GPU-...` or `MIG-...`; None for a CPU slot."""
    name: str
    """The device's product name."""
    memory_bytes: int
    num_threads: int
    """Torch threads of its runner."""


def register(db: Database, infos: Sequence[SlotInfo]) -> None:
    """Write the slots of a host; a known one is updated. They stay offline until their worker enters."""
    with db.write() as tx:
        now = tx.time()
        for info in infos:
            fields = asdict(info)
            values = {**fields, "state": SlotState.OFFLINE, "registered_at": now, "heartbeat_at": now}
            insert = tx.insert(Slot).values(**values, warm_models=[], incarnation="", reason="its worker is starting")
            changes = {name: value for name, value in fields.items() if name != "id"} | {"registered_at": now}
            tx.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changes))


def enter(db: Database, slot_id: str, incarnation: str, retries: RetryTimes) -> None:
    """A new worker process takes over a slot: what an earlier one held ends now, not when its lease would run out.

    Args:
        incarnation: the process's own token; only its heartbeats count from here on.
    """
    with db.write() as tx:
        now = tx.time()
        for locked in lease_ends.lock(tx, col(Lease.slot_id) == slot_id):
            if locked.lease.state == LeaseState.ACTIVE:
                lease_ends.expire(tx, locked, "its worker was restarted", retries)
            else:
                # Its message may be lost: the next sweep rings, and rings that nobody was there to hear do not count.
                locked.lease.rings, locked.lease.rung_at = 0, 0.0
        entered = moving(Slot, SlotState, SlotState.ONLINE).where(col(Slot.id) == slot_id)
        tx.execute(entered.values(incarnation=incarnation, heartbeat_at=now, warm_models=[], reason=None))


class Standing(StrEnum):
    """How a worker process stands to its slot."""

    OWNER = "owner"  # the slot is its own, and gets leases
    UNHEARD = "unheard"  # the owner, but its doorbell was rung in vain: it gets nothing until `mark_heard`
    DISPLACED = "displaced"  # the slot is another process's; this one must end


def beat(db: Database, slot_id: str, incarnation: str, warm_models: Sequence[str]) -> Standing:
    """A worker's heartbeat; a silent slot is online again with it, a broken one when its runner is ready (`enter`), one
    that did not answer its doorbell once it is known to hear (`mark_heard`)."""
    with db.write() as tx:
        mine = _owned(slot_id, incarnation)
        beaten = update(Slot).where(*mine).values(heartbeat_at=tx.now(), warm_models=list(warm_models))
        row = tx.execute(beaten.returning(col(Slot.state))).one_or_none()
        if row is None:
            return Standing.DISPLACED
        if row.state == SlotState.UNHEARD:
            return Standing.UNHEARD
        tx.execute(moving(Slot, SlotState.OFFLINE, SlotState.ONLINE).where(*mine).values(reason=None))
        return Standing.OWNER


def mark_heard(db: Database, slot_id: str, incarnation: str) -> None:
    """Put a slot back into use that did not answer its doorbell: its worker hears it."""
    with db.write() as tx:
        heard = moving(Slot, SlotState.UNHEARD, SlotState.ONLINE).where(*_owned(slot_id, incarnation))
        tx.execute(heard.values(reason=None))


def mark_broken(db: Database, slot_id: str, incarnation: str, reason: str) -> None:
    """Take a slot out of use because its runner cannot start."""
    with db.write() as tx:
        broken = moving(Slot, SlotState, SlotState.BROKEN).where(*_owned(slot_id, incarnation))
        tx.execute(broken.values(reason=reason))


def mark_mended(db: Database, slot_id: str, incarnation: str) -> None:
    """Put a broken slot back into use: its runner has started."""
    with db.write() as tx:
        mended = moving(Slot, SlotState.BROKEN, SlotState.ONLINE).where(*_owned(slot_id, incarnation))
        tx.execute(mended.values(reason=None))


def retire(db: Database, slot_ids: Sequence[str], incarnation: str | None = None) -> None:
    """Set slots offline whose workers were ended in order; a lease just granted to one goes back at once.

    Args:
        incarnation: only while this process owns them; where absent, whoever does.
    """
    with db.write() as tx:
        lease_ends.lock(tx, col(Lease.slot_id).in_(slot_ids), col(Lease.state) == LeaseState.GRANTED)
        ended = moving(Slot, _REACHABLE, SlotState.OFFLINE).where(col(Slot.id).in_(slot_ids))
        if incarnation is not None:
            ended = ended.where(col(Slot.incarnation) == incarnation)
        ended = ended.values(reason="its worker was stopped", incarnation="")
        retired = tx.scalars(ended.returning(col(Slot.id))).all()
        for job_id in lease_ends.withdraw(tx, "its worker was stopped", col(Lease.slot_id).in_(retired)):
            lost_work.settle_if_cancelling(tx, job_id)


def sweep_silent(db: Database, slot_seconds: float) -> list[str]:
    """Set slots offline whose worker has been silent for `slot_seconds`.

    Returns:
        Their ids.
    """
    with db.write() as tx:
        silent = (
            moving(Slot, _REACHABLE, SlotState.OFFLINE)
            .where(col(Slot.heartbeat_at) < tx.now() - slot_seconds)
            .values(reason=f"its worker was silent for {slot_seconds:g} s")
            .returning(col(Slot.id))
        )
        return list(tx.scalars(silent))


def list_slots(session: Any) -> list[Slot]:
    """Every slot ever registered, by id."""
    return list(session.scalars(select(Slot).order_by(col(Slot.id))))


def _owned(slot_id: str, incarnation: str) -> tuple[ColumnElement[bool], ...]:
    """Conditions: this worker process owns the slot."""
    return col(Slot.id) == slot_id, col(Slot.incarnation) == incarnation
