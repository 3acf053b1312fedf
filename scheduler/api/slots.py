"""Route of slots: which there are, and what each does now."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlmodel import col

from jobs.slots import list_slots
from jobs.states import LIVE_LEASE_STATES
from jobs.tables import Lease
from scheduler.api.auth import require_key
from scheduler.api.context import InContext
from scheduler.api.errors import ERROR_RESPONSES
from scheduler.api.schemas import Page, SlotView, page, slot_view

router = APIRouter(prefix="/v1/slots", tags=["slots"], dependencies=[Depends(require_key)], responses=ERROR_RESPONSES)


@router.get("")
def get_slots(context: InContext) -> Page[SlotView]:
    """Every slot ever registered, by id."""
    with context.database.read() as session:
        live = session.scalars(select(Lease).where(col(Lease.state).in_(LIVE_LEASE_STATES)))
        leases = {lease.slot_id: lease for lease in live}
        return page([slot_view(slot, leases.get(slot.id)) for slot in list_slots(session)])
