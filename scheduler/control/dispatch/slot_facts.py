"""Reads the slots that can get a lease now."""

from __future__ import annotations

from sqlalchemy import bindparam, select
from sqlmodel import Session, col

from jobs.config.times import LeaseTimes
from jobs.db.states import JobState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.ledger.timing.speeds import device_of
from scheduler.policy.types import SlotFacts

_FRESH_SHARE = 0.5  # share of `slot_seconds`; a worker sends a heartbeat each quarter of it
_KEPT_SECONDS = 60.0  # time for which a slot that was asked back for a job is kept for it


def read_slots(session: Session, times: LeaseTimes, now: float) -> tuple[SlotFacts, ...]:
    """Read the slots that can get a lease now."""
    heard_since = now - times.slot_seconds * _FRESH_SHARE
    kept = {row.slot_id: row.yield_for for row in session.execute(_KEPT_SLOTS, {"since": now - _KEPT_SECONDS})}
    return tuple(
        SlotFacts(
            id=row.id,
            host=row.host,
            warm_models=tuple(row.warm_models),
            kind=device_of(row.device, row.name),
            packages=None if row.packages is None else frozenset(row.packages),
            kept_for=kept.get(row.id),
            memory_bytes=row.memory_bytes,
            device=row.device,
            labels=frozenset(row.labels or ()),
        )
        for row in session.execute(_USABLE_SLOTS, {"heard_since": heard_since})
    )


_KEPT_SLOTS = (
    select(col(Lease.slot_id), col(Lease.yield_for))
    .join(Job, col(Job.id) == col(Lease.yield_for))
    .where(
        col(Lease.yield_for).is_not(None), col(Lease.ended_at) >= bindparam("since"), col(Job.state) == JobState.QUEUED
    )
    .order_by(col(Lease.ended_at))
)
_USABLE_SLOTS = select(
    col(Slot.id),
    col(Slot.host),
    col(Slot.device),
    col(Slot.name),
    col(Slot.warm_models),
    col(Slot.packages),
    col(Slot.memory_bytes),
    col(Slot.labels),
).where(
    # A slot that missed heartbeats is probably dead, and a lease for it would wait until its ring counts as unanswered.
    col(Slot.state) == SlotState.ONLINE,
    col(Slot.heartbeat_at) >= bindparam("heard_since"),
)
