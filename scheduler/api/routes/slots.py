"""Route of slots: list them with what each does now."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlmodel import Session, col

from jobs.config.projects import sees
from jobs.db.states import LIVE_LEASE_STATES
from jobs.db.tables import ApiKey, Job, Lease, Slot
from jobs.ledger.slots import list_slots
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import scope_of
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses
from scheduler.api.views.lists import Page, page
from scheduler.api.views.slot_views import SlotView, slot_view

router = APIRouter(prefix="/v1/slots", tags=["slots"], dependencies=[Depends(require_key)], responses=error_responses())


@router.get("")
def get_slots(context: InContext, key: Key) -> Page[SlotView]:
    """All slots that were ever registered, sorted by id. Jobs and models of other projects are hidden."""
    working = select(Lease, col(Job.project)).join(Job, col(Job.id) == col(Lease.job_id))
    with context.database.read() as session:
        live = session.execute(working.where(col(Lease.state).in_(LIVE_LEASE_STATES))).all()
        leases: dict[str, Lease] = {lease.slot_id: lease for lease, _ in live}
        jobs = {lease.slot_id: lease.job_id for lease, owner in live if sees(key.project, owner)}
        slots = list_slots(session)
        models = _visible_models(session, key, slots)
        return page(
            [
                slot_view(
                    slot,
                    leases.get(slot.id),
                    job_id=jobs.get(slot.id),
                    warm_models=[model for model in slot.warm_models if model in models],
                )
                for slot in slots
            ]
        )


def _visible_models(session: Session, key: ApiKey, slots: Sequence[Slot]) -> set[str]:
    """The warm models that jobs of the key's project use or used; the operator sees all."""
    warm = {model for slot in slots for model in slot.warm_models}
    if scope_of(key) is None or not warm:
        return warm
    own = select(col(Job.model_key)).where(col(Job.project) == key.project, col(Job.model_key).in_(warm)).distinct()
    return set(session.scalars(own))
