"""Finds slots, leases and jobs that died, went silent or are overdue: one cheap query, then an action for each case."""

from __future__ import annotations

import logging

from celery import Celery
from sqlalchemy import exists, false, func, select
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import col

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, JobState, LeaseState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.ledger import overdue, slots
from jobs.ledger.families import HAS_LIVE_CHILD, IS_ARRAY
from jobs.ledger.leasing import leases
from scheduler.control.dispatch.doorbells import ring_again

logger = logging.getLogger(__name__)


def reap(db: Database, app: Celery, times: LeaseTimes) -> bool:
    """Take back the leases of dead workers, repeat rings that were not answered, and end overdue jobs.

    If nothing is due, this is a single read. The actions take the write lock, which would delay the workers' commits
    every second without need.

    Returns:
        Whether anything was due, so that slots may be free or jobs waiting that were not before.
    """
    due = _what_is_due(db, times)
    if "silent slots" in due:
        for slot_id in slots.retire_silent(db, times.slot_seconds):
            logger.warning("slot %s is offline: its worker sent no heartbeat for %g s", slot_id, times.slot_seconds)
    if "dead leases" in due:
        for lease_id in leases.expire_dead(db, times):
            logger.warning("lease %s has expired: its holder did not renew it", lease_id)
    if "unanswered doorbells" in due:
        ring_again(db, app, times)
    if "overdue jobs" in due:
        for job_id in overdue.expire_overdue(db):
            logger.info("job %s has expired: its time limit passed", job_id)
    if "cancelling jobs" in due:
        overdue.settle_cancelled(db)
    if "idle jobs" in due:
        overdue.requeue_idle(db)
    return bool(due)


def _what_is_due(db: Database, times: LeaseTimes) -> set[str]:
    now = db.now()
    has_lease = exists().where(col(Lease.job_id) == col(Job.id), col(Lease.state).in_(LIVE_LEASE_STATES))
    conditions: dict[str, ColumnElement[bool]] = {
        "silent slots": exists().where(
            col(Slot.state) != SlotState.OFFLINE, col(Slot.heartbeat_at) < now - times.slot_seconds
        ),
        "dead leases": exists().where(col(Lease.state) == LeaseState.ACTIVE, col(Lease.expires_at) < now),
        "unanswered doorbells": exists().where(
            col(Lease.state) == LeaseState.GRANTED, col(Lease.rung_at) <= now - times.doorbell_seconds
        ),
        "overdue jobs": func.coalesce(overdue.next_deadline() < now, false()),
        "cancelling jobs": exists().where(col(Job.state) == JobState.CANCELLING, ~has_lease, ~HAS_LIVE_CHILD),
        "idle jobs": exists().where(col(Job.state) == JobState.RUNNING, ~has_lease, ~IS_ARRAY),
    }
    with db.read() as session:
        found = session.execute(select(*(condition.label(name) for name, condition in conditions.items()))).one()
    return {name for name, is_due in zip(conditions, found, strict=True) if is_due}
