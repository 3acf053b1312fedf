"""Jobs as JSON: the slots that each holds, and why waiting jobs wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.db.states import LIVE_JOB_STATES, LIVE_LEASE_STATES, JobState, LeaseState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.ledger import attempts, dependencies
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import arrays
from jobs.ledger.records import notices
from jobs.ledger.timing import forecasts, stage_times
from jobs.messages import short
from jobs.specs.array_spec import ARRAY, SWEEP
from jobs.specs.inference import INFERENCE, TRAINING
from jobs.specs.sweep_spec import SweepField
from scheduler.api.context import Context
from scheduler.api.views.health_views import redis_state
from scheduler.api.views.job_views import JobView, SweepView, TrialView, job_view
from scheduler.api.views.lists import ShownSpec
from scheduler.control.dispatch.dispatcher import explain
from scheduler.control.dispatch.growth_facts import why_not_growing
from scheduler.control.leader import has_leader

_LONGEST_REASON = 300  # characters of the reason that ended a lease
_MOST_PARENTS = 3
"""The most jobs that a reason to wait names."""
_ANSWERED_SECONDS = 2.0
"""Slots answer their doorbell faster than this; a slot that has not answered may not have been rung."""


def describe_job(context: Context, job_id: str) -> JobView:
    """A job as JSON, with its slots and the reason why it waits."""
    with context.database.read() as session:
        job = job_ledger.get(session, job_id)
        view = describe_jobs(session, context, [job], [ShownSpec(job.spec, is_cut=False)])[0]
        return view.model_copy(update={"sweep": sweep_view(session, job)})


def sweep_view(session: Session, job: Job) -> SweepView | None:
    """How far a sweep is, for which all its trials are read; None for another job."""
    if job.kind != ARRAY or not job.spec.get(SWEEP):
        return None
    field = SweepField.model_validate(job.spec[SWEEP])
    trials = arrays.trials(session, job, field)
    best = arrays.winner_of(trials, field.best_mode)
    return SweepView(
        metric=field.metric,
        best=None
        if best is None or best.value is None
        else TrialView(
            index=best.index,
            job_id=best.job_id,
            value=best.value,
            values=dict(best.values),
            pruned_step=best.pruned_step,
        ),
        num_pruned=sum(trial.pruned_step is not None for trial in trials),
    )


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
    planned = [job.id for job in jobs if job.state != JobState.VALIDATING]  # no other job has ever had a lease
    held = _live_leases(session, planned)
    notices_by_job = notices.of_jobs(session, [job.id for job in jobs])
    times = stage_times.of_jobs(session, planned)
    forecast_of = forecasts.of_jobs(session, [job.id for job in jobs if job.state in LIVE_JOB_STATES])
    children_of = arrays.children_by_state(session, [job.id for job in jobs if job.kind == ARRAY])
    reason = _why_jobs_wait(session) if any(job.state == JobState.QUEUED for job in jobs) else None
    not_ready = _why_not_ready(session, [job for job in jobs if job.state == JobState.VALIDATING])
    delayed = [job for job in jobs if job.not_before and job.id not in held]
    delays = _delays(session, delayed, session.time()) if delayed else {}
    explained: Mapping[str, str] = {}
    if any(job.state == JobState.QUEUED and (job.kind == TRAINING or job.needs) for job in jobs) and has_leader(
        session
    ):
        # A training may wait for several slots of one host, or for a lease that cannot be taken back; a job with needs,
        # for a slot that has them.
        explained = explain(session, context.settings, context.settings.projects)
    running = [job for job in jobs if job.state == JobState.RUNNING and job.kind == INFERENCE]
    growth = why_not_growing(session, context.settings, running) if running else {}
    unrung = _why_unrung(held, session.time(), context) if held else {}
    return [
        job_view(
            job,
            shown,
            held=held.get(job.id, ()),
            waiting_reason=delays.get(job.id)
            or not_ready.get(job.id)
            or (explained.get(job.id, reason) if job.state == JobState.QUEUED and job.kind != ARRAY else None)
            or unrung.get(job.id)
            or growth.get(job.id),
            notices=notices_by_job.get(job.id, ()),
            metrics=attempts.latest_metrics(session, job.id) if job.kind == TRAINING else None,
            times=times.get(job.id),
            forecast=forecast_of.get(job.id),
            children=_children(job, children_of.get(job.id, {})) if job.kind == ARRAY else None,
        )
        for job, shown in zip(jobs, specs, strict=True)
    ]


def _live_leases(session: Session, job_ids: Sequence[str]) -> dict[str, list[Lease]]:
    """Job id -> its live leases."""
    if not job_ids:
        return {}
    live = select(Lease).where(col(Lease.job_id).in_(job_ids), col(Lease.state).in_(LIVE_LEASE_STATES))
    held: dict[str, list[Lease]] = {}
    for lease in session.scalars(live.order_by(col(Lease.rank), col(Lease.slot_id))):
        held.setdefault(lease.job_id, []).append(lease)
    return held


def _children(array: Job, by_state: Mapping[str, int]) -> dict[str, int]:
    """State -> number of an array's children, in the order of their states; `waiting` for those not made yet."""
    num_unmade = 0 if array.state.is_terminal else array.num_rows - array.num_children
    found = {state.value: by_state[state] for state in JobState if state in by_state}
    return {"waiting": num_unmade, **found} if num_unmade else found


def _why_not_ready(session: Transaction, jobs: Sequence[Job]) -> dict[str, str]:
    """Job id -> what a job waits for that is not planned yet."""
    reasons: dict[str, str] = {}
    parents = dependencies.parents_of(session, [job.id for job in jobs if job.ready_at is None])
    for job in jobs:
        if job.ready_at is None and job.id not in parents:
            reasons[job.id] = f"waits for a place in its array, {job.parent_id}"
        elif job.ready_at is None:
            shown = [f"{parent_id} ({state})" for parent_id, state in parents[job.id].items()]
            more = [f"{len(shown) - _MOST_PARENTS} more"] if len(shown) > _MOST_PARENTS else []
            reasons[job.id] = f"waits for the end of {', '.join([*shown[:_MOST_PARENTS], *more])}"
        elif job.ready_at > session.time():
            reasons[job.id] = f"starts at {datetime.fromtimestamp(job.ready_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        else:
            reasons[job.id] = "reading and counting its rows"
    return reasons


def _delays(session: Session, jobs: Sequence[Job], now: float) -> dict[str, str]:
    """Job id -> why the job is retried later: what ended its latest lease."""
    delays: dict[str, str] = {}
    for job in jobs:
        if job.state in (JobState.QUEUED, JobState.RUNNING) and job.not_before > now:
            ended = select(col(Lease.end_reason)).where(col(Lease.job_id) == job.id, col(Lease.rank) == 0)
            why = session.scalar(ended.order_by(col(Lease.ended_at).desc()).limit(1)) or "its runner died"
            delays[job.id] = f"{short(why, _LONGEST_REASON)}; retrying in {job.not_before - now:.0f} s"
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
    return "it will get a slot in a moment"


def _why_unrung(held: Mapping[str, Sequence[Lease]], now: float, context: Context) -> dict[str, str]:
    """Job id -> why none of its slots has started, for jobs whose doorbells cannot be rung."""
    waiting = [
        job_id
        for job_id, leases in held.items()
        if all(lease.state == LeaseState.GRANTED and now - lease.granted_at > _ANSWERED_SECONDS for lease in leases)
    ]
    state = redis_state(context.settings) if waiting else "ok"
    return {} if state == "ok" else dict.fromkeys(waiting, f"cannot notify its slots: Redis {state}")
