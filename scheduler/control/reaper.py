"""Finds slots, leases and jobs that died, went silent or are overdue: one cheap query, then an action for each case."""

from __future__ import annotations

import logging

from celery import Celery
from sqlalchemy import exists, select
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import col

from jobs import queue
from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import EXPIRABLE_JOB_STATES, LIVE_LEASE_STATES, JobState, LeaseState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.ledger import leases, slots, sweeps
from scheduler.control.dispatcher import ring_all

logger = logging.getLogger(__name__)


def reap(db: Database, app: Celery, times: LeaseTimes) -> None:
    """Take back the leases of dead workers, repeat rings that were not answered, and end overdue jobs.

    If nothing is due, this is a single read. The actions take the write lock, which would delay the workers' commits
    every second without need.
    """
    due = _what_is_due(db, times)
    if "silent slots" in due:
        for slot_id in slots.sweep_silent(db, times.slot_seconds):
            logger.warning("slot %s is offline: its worker has been silent for %g s", slot_id, times.slot_seconds)
    if "dead leases" in due:
        for lease_id in leases.expire_dead(db, times):
            logger.warning("lease %s has expired: its holder did not renew it", lease_id)
    # If Redis refuses rings, it is not the slots that fail to answer.
    if "unanswered doorbells" in due and queue.broker_trouble(app) is None:
        rings = leases.unanswered(db, times)
        for ring in rings:
            logger.warning("slot %s did not answer for lease %s; ringing again", ring.slot_id, ring.lease_id)
        ring_all(app, rings)
    if "overdue jobs" in due:
        for job_id in sweeps.expire_overdue(db):
            logger.info("job %s has expired: its time limit passed", job_id)
    if "cancelling jobs" in due:
        sweeps.settle_cancelled(db)
    if "idle jobs" in due:
        sweeps.requeue_idle(db)


def _what_is_due(db: Database, times: LeaseTimes) -> set[str]:
    now = db.now()
    has_lease = exists().where(col(Lease.job_id) == col(Job.id), col(Lease.state).in_(LIVE_LEASE_STATES))
    questions: dict[str, ColumnElement[bool]] = {
        "silent slots": exists().where(
            col(Slot.state) != SlotState.OFFLINE, col(Slot.heartbeat_at) < now - times.slot_seconds
        ),
        "dead leases": exists().where(col(Lease.state) == LeaseState.ACTIVE, col(Lease.expires_at) < now),
        "unanswered doorbells": exists().where(
            col(Lease.state) == LeaseState.GRANTED, col(Lease.rung_at) <= now - times.doorbell_seconds
        ),
        "overdue jobs": exists().where(col(Job.state).in_(EXPIRABLE_JOB_STATES), col(Job.deadline_at) < now),
        "cancelling jobs": exists().where(col(Job.state) == JobState.CANCELLING, ~has_lease),
        "idle jobs": exists().where(col(Job.state) == JobState.RUNNING, ~has_lease),
    }
    with db.read() as session:
        answers = session.execute(select(*(question.label(name) for name, question in questions.items()))).one()
    return {name for name, answer in zip(questions, answers, strict=True) if answer}
