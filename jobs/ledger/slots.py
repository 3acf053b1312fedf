"""Slots: which exist, which worker process owns each, and which have stopped sending heartbeats."""

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
from jobs.ledger.leasing import lease_ends, lost_work
from jobs.specs.needs import Needs

_REACHABLE = (SlotState.ONLINE, SlotState.UNHEARD, SlotState.BROKEN)


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """Properties of a slot that are known before its worker runs."""

    id: str
    host: str
    device: str
    """Either `cuda` or `cpu`."""
    device_uuid: str | None
    """NVIDIA's id, `GPU-...` or `MIG-...`; None for a CPU slot."""
    name: str
    """The device's product name."""
    memory_bytes: int
    num_threads: int
    """Number of torch threads of its runner."""
    packages: Sequence[str] | None = None
    """Optional packages that the host has, of `jobs.specs.packages`; None if unknown."""
    labels: Sequence[str] = ()
    """Labels that the operator gave the host."""


def register(db: Database, infos: Sequence[SlotInfo]) -> None:
    """Create or update the slots of a host. New ones are offline until their workers call `enter`."""
    with db.write() as tx:
        now = tx.time()
        for info in infos:
            fields = asdict(info) | {"labels": list(info.labels)}
            values = {**fields, "state": SlotState.OFFLINE, "registered_at": now, "heartbeat_at": now}
            insert = tx.insert(Slot).values(**values, warm_models=[], incarnation="", reason="its worker is starting")
            changes = {name: value for name, value in fields.items() if name != "id"} | {"registered_at": now}
            tx.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changes))


def enter(db: Database, slot_id: str, incarnation: str, retries: RetryTimes) -> None:
    """Let a new worker process take over a slot. Active leases of an earlier process end now, before they would expire.

    Args:
        incarnation: Token of the process; from now on only its heartbeats count.
    """
    with db.write() as tx:
        now = tx.time()
        for locked in lease_ends.lock(tx, col(Lease.slot_id) == slot_id):
            if locked.lease.state == LeaseState.ACTIVE:
                lease_ends.expire(tx, locked, "its worker was restarted", retries)
            else:
                # Its message may be lost, so the service soon rings again. Rings while no worker ran do not count.
                locked.lease.rings, locked.lease.rung_at = 0, 0.0
        entered = moving(Slot, SlotState, SlotState.ONLINE).where(col(Slot.id) == slot_id)
        tx.execute(entered.values(incarnation=incarnation, heartbeat_at=now, warm_models=[], reason=None))


class Ownership(StrEnum):
    """Relation of a worker process to its slot."""

    OWNER = "owner"  # it owns the slot, which gets leases
    UNHEARD = "unheard"  # it owns the slot but did not answer its doorbell: no leases until `mark_heard`
    DISPLACED = "displaced"  # another process owns the slot; this one must end


def beat(db: Database, slot_id: str, incarnation: str, warm_models: Sequence[str]) -> Ownership:
    """Record a worker's heartbeat, which puts an offline slot online again.

    A broken slot stays broken until its runner has started (`enter`, `mark_mended`), and one that did not answer its
    doorbell stays unheard until `mark_heard`.
    """
    with db.write() as tx:
        mine = _owned(slot_id, incarnation)
        beaten = update(Slot).where(*mine).values(heartbeat_at=tx.now(), warm_models=list(warm_models))
        row = tx.execute(beaten.returning(col(Slot.state))).one_or_none()
        if row is None:
            return Ownership.DISPLACED
        if row.state == SlotState.UNHEARD:
            return Ownership.UNHEARD
        tx.execute(moving(Slot, SlotState.OFFLINE, SlotState.ONLINE).where(*mine).values(reason=None))
        return Ownership.OWNER


def mark_heard(db: Database, slot_id: str, incarnation: str) -> None:
    """Put a slot back into use that did not answer its doorbell, since its worker receives messages again."""
    with db.write() as tx:
        heard = moving(Slot, SlotState.UNHEARD, SlotState.ONLINE).where(*_owned(slot_id, incarnation))
        tx.execute(heard.values(reason=None))


def mark_broken(db: Database, slot_id: str, incarnation: str, reason: str) -> None:
    """Take a slot out of use because its runner cannot start."""
    with db.write() as tx:
        broken = moving(Slot, SlotState, SlotState.BROKEN).where(*_owned(slot_id, incarnation))
        tx.execute(broken.values(reason=reason))


def mark_mended(db: Database, slot_id: str, incarnation: str) -> None:
    """Put a broken slot back into use, since its runner has started."""
    with db.write() as tx:
        mended = moving(Slot, SlotState.BROKEN, SlotState.ONLINE).where(*_owned(slot_id, incarnation))
        tx.execute(mended.values(reason=None))


def retire(db: Database, slot_ids: Sequence[str], incarnation: str | None = None) -> None:
    """Set slots offline whose workers were stopped in order. Leases that are granted but not active are revoked.

    Args:
        incarnation: Retire only slots that this process owns; None for any owner.
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


def retire_silent(db: Database, slot_seconds: float) -> list[str]:
    """Set slots offline whose worker has sent no heartbeat for `slot_seconds`.

    Returns:
        The ids of those slots.
    """
    with db.write() as tx:
        silent = (
            moving(Slot, _REACHABLE, SlotState.OFFLINE)
            .where(col(Slot.heartbeat_at) < tx.now() - slot_seconds)
            .values(reason=f"its worker sent no heartbeat for {slot_seconds:g} s")
            .returning(col(Slot.id))
        )
        return list(tx.scalars(silent))


def list_slots(session: Any) -> list[Slot]:
    """Return all slots ever registered, by id."""
    return list(session.scalars(select(Slot).order_by(col(Slot.id))))


def none_meets(session: Any, needs: Needs) -> bool:
    """Whether no slot, online or not, has what a job needs. False as long as no slot's worker runs."""
    columns = (Slot.state, Slot.memory_bytes, Slot.device, Slot.packages, Slot.labels)
    found = session.execute(select(*map(col, columns))).all()
    return not any(needs.met_by(slot) for slot in found) and any(slot.state in _REACHABLE for slot in found)


def _owned(slot_id: str, incarnation: str) -> tuple[ColumnElement[bool], ...]:
    """The conditions under which this worker process owns the slot."""
    return col(Slot.id) == slot_id, col(Slot.incarnation) == incarnation
