"""Jobs as JSON: the slots that each holds, and why waiting jobs wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.db.states import LIVE_LEASE_STATES, JobState, LeaseState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.ledger import attempts, notices
from jobs.ledger import jobs as job_ledger
from jobs.messages import short
from jobs.specs.inference import TRAINING
from scheduler.api.context import Context
from scheduler.api.listed import ShownSpec
from scheduler.api.routes.health import redis_state
from scheduler.api.schemas import JobView, job_view
from scheduler.control.dispatcher import explain
from scheduler.control.leader import has_leader

_LONGEST_REASON = 300  # characters of the reason that ended a lease
_ANSWERED_SECONDS = 2.0
"""Slots answer their doorbell faster than this; a slot that has not answered may not have been rung."""


def describe_job(context: Context, job_id: str) -> JobView:
    """A job as JSON, with its slots and the reason why it waits."""
    with context.database.read() as session:
        job = job_ledger.get(session, job_id)
        return describe_jobs(session, context, [job], [ShownSpec(job.spec, is_cut=False)])[0]


def describe_jobs(
    session: Transaction, context: Context, jobs: Sequence[Job], specs: Sequence[ShownSpec]
) -> list[JobView]:
    """Jobs as JSON, with a few queries for all of them together.

    Args:
        session: A read session.
        context: The app's context.
        jobs: The jobs to describe.
        specs: The part of each job's spec to show.
    """
    live = select(Lease).where(col(Lease.job_id).in_([job.id for job in jobs]), col(Lease.state).in_(LIVE_LEASE_STATES))
    held: dict[str, list[Lease]] = {}
    for lease in session.scalars(live.order_by(col(Lease.rank), col(Lease.slot_id))):
        held.setdefault(lease.job_id, []).append(lease)
    told = notices.of_jobs(session, [job.id for job in jobs])
    waits = any(job.state in (JobState.VALIDATING, JobState.QUEUED) for job in jobs)
    reason = _why_jobs_wait(session) if waits else None
    delayed = [job for job in jobs if job.not_before and job.id not in held]
    delays = _delays(session, delayed, session.time()) if delayed else {}
    explained: Mapping[str, str] = {}
    if any(job.state == JobState.QUEUED and job.kind == TRAINING for job in jobs) and has_leader(session):
        # A training may wait for several slots of one host, or for a lease that cannot be taken back.
        explained = explain(session, context.settings)
    unrung = _why_unrung(held, session.time(), context) if held else {}
    return [
        job_view(
            job,
            shown,
            held=held.get(job.id, ()),
            waiting_reason=delays.get(job.id)
            or _waiting_reason(job, explained.get(job.id, reason))
            or unrung.get(job.id),
            notices=told.get(job.id, ()),
            metrics=attempts.latest_metrics(session, job.id) if job.kind == TRAINING else None,
        )
        for job, shown in zip(jobs, specs, strict=True)
    ]


def _waiting_reason(job: Job, reason: str | None) -> str | None:
    if job.state == JobState.VALIDATING:
        return "its rows are being read" if job.waits_for is None else f"waits for the model of {job.waits_for}"
    return reason if job.state == JobState.QUEUED else None


def _delays(session: Session, jobs: Sequence[Job], now: float) -> dict[str, str]:
    """Job id -> why the job is retried later: what ended its latest lease."""
    delays: dict[str, str] = {}
    for job in jobs:
        if job.state in (JobState.QUEUED, JobState.RUNNING) and job.not_before > now:
            ended = select(col(Lease.end_reason)).where(col(Lease.job_id) == job.id, col(Lease.rank) == 0)
            why = session.scalar(ended.order_by(col(Lease.ended_at).desc()).limit(1)) or "its runner died"
            delays[job.id] = f"{short(why, _LONGEST_REASON)}; it is tried again in {job.not_before - now:.0f} s"
    return delays


def _why_jobs_wait(session: Transaction) -> str:
    if not has_leader(session):
        return "no scheduler is running"
    online = session.scalar(select(func.count()).select_from(Slot).where(col(Slot.state) == SlotState.ONLINE)) or 0
    if not online:
        reason = session.scalar(select(col(Slot.reason)).where(col(Slot.state) == SlotState.UNHEARD).limit(1))
        return f"no slot is online: {reason}" if reason else "no slot is online"
    busy = select(func.count()).select_from(Lease).where(col(Lease.state).in_(LIVE_LEASE_STATES))
    if (session.scalar(busy) or 0) >= online:
        return f"all slots are busy ({online})"
    return "it is about to get a slot"


def _why_unrung(held: Mapping[str, Sequence[Lease]], now: float, context: Context) -> dict[str, str]:
    """Job id -> why none of its slots has started, for jobs whose doorbells cannot be rung."""
    waiting = [
        job_id
        for job_id, leases in held.items()
        if all(lease.state == LeaseState.GRANTED and now - lease.granted_at > _ANSWERED_SECONDS for lease in leases)
    ]
    state = redis_state(context.settings) if waiting else "ok"
    return {} if state == "ok" else dict.fromkeys(waiting, f"its slots cannot be rung: Redis {state}")
