"""Route of slots: which there are, and what each does now."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlmodel import col

from jobs.projects import sees
from jobs.slots import list_slots
from jobs.states import LIVE_LEASE_STATES
from jobs.tables import Job, Lease
from scheduler.api.auth import Key, require_key
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses
from scheduler.api.schemas import Page, SlotView, page, slot_view

router = APIRouter(prefix="/v1/slots", tags=["slots"], dependencies=[Depends(require_key)], responses=error_responses())


@router.get("")
def get_slots(context: InContext, key: Key) -> Page[SlotView]:
    """Every slot ever registered, by id. Of one that works for another project, its job is not told."""
    working = select(Lease, col(Job.project)).join(Job, col(Job.id) == col(Lease.job_id))
    with context.database.read() as session:
        live = session.execute(working.where(col(Lease.state).in_(LIVE_LEASE_STATES))).all()
        leases: dict[str, Lease] = {lease.slot_id: lease for lease, _ in live}
        jobs = {lease.slot_id: lease.job_id for lease, owner in live if sees(key.project, owner)}
        return page([slot_view(slot, leases.get(slot.id), job_id=jobs.get(slot.id)) for slot in list_slots(session)])
