"""Carries out the policy's decisions: reads jobs, slots and leases, writes leases, and rings the slots' doorbells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Select, String, bindparam, cast, exists, func, literal, or_, select, union_all
from sqlmodel import Session, col

from jobs.config.limits import Limits
from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import IS_LEASED, IS_LIVE, Chunk, Job, Lease
from jobs.db.transaction import Transaction
from jobs.ledger.families import IS_ARRAY
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.reservations import record_reservation
from jobs.ledger.timing.promised_work import seconds_left
from jobs.specs.inference import INFERENCE, TRAINING, Priority
from jobs.specs.needs import Needs
from scheduler.control.dispatch.doorbells import ring_all
from scheduler.control.dispatch.growth_facts import with_growth
from scheduler.control.dispatch.project_shares import project_facts
from scheduler.control.dispatch.slot_facts import read_slots
from scheduler.control.dispatch.training_bounds import Progress, progress
from scheduler.forecast.simulate import QUEUE_HEAD
from scheduler.policy.decide import decide
from scheduler.policy.promises import Promise, project_shares, with_promises
from scheduler.policy.types import AGED_SECONDS, BRIEF_SECONDS, JobFacts, LeaseFacts, ProjectFacts, SlotFacts

logger = logging.getLogger(__name__)

_LEAST_HEAD = 16  # waiting jobs of each priority and project that one decision looks at, at least


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """The policy's input, read in one transaction."""

    jobs: tuple[JobFacts, ...]
    slots: tuple[SlotFacts, ...]
    leases: tuple[LeaseFacts, ...]
    now: float
    """Unix seconds by the database's clock."""
    projects: Mapping[str, ProjectFacts]
    """What the projects of the jobs are entitled to, by name."""
    promises: Mapping[str, Promise]
    """Promises of these jobs, by job id."""
    shares: Mapping[str, int]
    """Project -> number of slots that its promised jobs may have together."""


def dispatch(db: Database, app: Celery, times: LeaseTimes, limits: Limits | None = None) -> int:
    """Make one decision and carry it out.

    A grant that comes too late (the job was cancelled, the slot went silent) is skipped; the next decision accounts for
    the change.

    Returns:
        The number of leases granted.
    """
    with db.read() as session:
        if not session.scalar(_HAS_WORK):
            return 0  # without jobs, a decision costs only this one query
        facts = read_policy_input(session, times, limits)
    decisions = decide(facts.jobs, facts.slots, facts.leases, facts.now, facts.projects)
    if decisions.yields:
        leases.ask_yield(db, decisions.yields)
    if (reservation := decisions.reservation) is not None and reservation.at is not None:
        record_reservation(db, reservation.job_id, reservation.slot_ids, reservation.at)
    num_granted, is_redis_away = 0, False
    for granted in grants.grant_all(db, decisions.grants, lease_seconds=times.lease_seconds):
        for conflict in granted.conflicts:
            logger.info("a grant came too late: %s", conflict)
        is_redis_away = is_redis_away or ring_all(app, granted.rings) < len(granted.rings)
        num_granted += len(granted.rings)
    return num_granted


def explain(session: Transaction, times: LeaseTimes, limits: Limits | None = None) -> Mapping[str, str]:
    """Why each job at the head of the queue waits, by job id, according to the policy now. Changes nothing."""
    facts = read_policy_input(session, times, limits)
    return decide(facts.jobs, facts.slots, facts.leases, facts.now, facts.projects).explanations


# -- the policy's input --------------------------------------------------------------------------------------------


def read_policy_input(
    session: Transaction, times: LeaseTimes, limits: Limits | None = None, *, queue_head: int = QUEUE_HEAD
) -> PolicyInput:
    """Read the policy's input: running jobs, the first waiting jobs of each priority, usable slots and live leases.

    Only the head of the queue is read, so that a decision takes as long with ten thousand waiting jobs as with ten.

    Args:
        queue_head: Number of waiting jobs of each priority, beyond one for each slot.
    """
    now = session.time()
    slots = read_slots(session, times, now)
    jobs = _candidates(session, now, slots, most_jobs=len(slots) + queue_head, most_chunks=len(slots) + QUEUE_HEAD)
    lease_rows = session.execute(_LIVE_LEASES).all()
    waited = _waited_before(session, [job for job in jobs if now - job.ready_at > AGED_SECONDS])
    trainings = progress(session, [job.id for job in jobs if job.kind == TRAINING], now)
    first_grant: dict[str, float] = {}
    for row in lease_rows:
        first_grant[row.job_id] = min(row.granted_at, first_grant.get(row.job_id, row.granted_at))
    promises = {
        job.id: Promise(job.project, job.promise_at, seconds_left(job)) for job in jobs if job.promise_at is not None
    }
    projects = project_facts(session, {job.project for job in jobs}, limits or {}, now)
    shares = project_shares(len(slots), projects)
    all_leases = tuple(
        LeaseFacts(
            id=row.id,
            job_id=row.job_id,
            slot_id=row.slot_id,
            granted_at=row.granted_at,
            working=row.working,
            ending=row.yield_asked or row.job_state != JobState.RUNNING,
            yield_for=row.yield_for,
        )
        for row in lease_rows
    )
    all_jobs = [
        JobFacts(
            id=job.id,
            rank=job.priority,
            created_at=job.ready_at,
            waited_seconds=first_grant.get(job.id, now) - waited.get(job.id, job.ready_at),
            elastic=job.kind != TRAINING,
            gang_size=(job.max_slots or 1) if job.kind == TRAINING else 1,
            max_slots=None if job.kind == TRAINING else job.max_slots,
            pending_chunks=job.pending,
            model_key=job.model_key,
            not_before=job.not_before,
            preemptable_seconds=times.preemptable_seconds,
            num_preemptions=trainings.get(job.id, Progress()).num_preemptions,
            remaining_seconds=None
            if job.kind != TRAINING
            else trainings.get(job.id, Progress()).remaining_seconds(
                num_steps=job.num_rows, num_done=job.num_done, deadline_at=job.deadline_at, now=now
            ),
            needs=Needs.from_stored(job.needs),
            project=job.project,
        )
        for job in jobs
    ]
    rows_left = {job.id: job.num_rows - job.num_done for job in jobs}
    return PolicyInput(
        jobs=with_promises(with_growth(session, all_jobs, rows_left, slots, all_leases), promises, now, shares=shares),
        promises=promises,
        shares=shares,
        slots=slots,
        leases=all_leases,
        now=now,
        projects=projects,
    )


def _candidates(
    session: Session, now: float, slots: Sequence[SlotFacts], *, most_jobs: int, most_chunks: int
) -> list[Any]:
    """Every running job and, by project, priority and age, the first waiting jobs that could use a slot now or soon."""
    bound = {"now": now, "soon": now + BRIEF_SECONDS, "most_chunks": most_chunks}
    rows = list(session.execute(_RUNNING_JOBS, bound))
    projects = session.scalars(_WAITING_PROJECTS).all()
    head = max(_LEAST_HEAD, most_jobs // max(1, len(projects)))
    for project in projects:  # otherwise the jobs of one would hide those of the others
        for priority in Priority:
            which = {"project": project, "priority": priority.rank, "head": head}
            rows.extend(_first_waiting(session, {**bound, **which}, slots))
    return rows


def _first_waiting(session: Session, bound: Mapping[str, Any], slots: Sequence[SlotFacts]) -> list[Any]:
    """The first waiting jobs of one project and priority. Jobs that need what no slot has now, because a host is away,
    do not hide those behind them."""
    unserved: set[str] = set()
    rows: list[Any] = []
    while True:
        found = session.execute(_WAITING_JOBS, {**bound, "unserved": sorted(unserved)}).all()
        needs = {row.needs_text: row.needs for row in found if row.needs is not None}
        new = {text for text, stored in needs.items() if not _is_served(Needs.from_stored(stored), slots)}
        if not new or not slots:
            return [*rows, *found]
        rows.extend(row for row in found if row.needs_text in new)
        unserved |= new


def _is_served(needs: Needs, slots: Sequence[SlotFacts]) -> bool:
    return any(needs.met_by(slot) for slot in slots)


def _waited_before(session: Session, old_jobs: Sequence[Any]) -> dict[str, float]:
    """When the wait of each of these jobs began: at the end of its last lease. Jobs that had no lease are missing."""
    if not old_jobs:
        return {}
    ended = (
        select(col(Lease.job_id), func.max(Lease.ended_at).label("at"))
        .where(col(Lease.job_id).in_([job.id for job in old_jobs]), col(Lease.ended_at).is_not(None))
        .group_by(col(Lease.job_id))
    )
    return {row.job_id: row.at for row in session.execute(ended)}


def _build_jobs() -> tuple[Select[Any], Select[Any]]:
    claimable = (
        select(col(Chunk.start_row))
        .where(
            col(Chunk.job_id) == col(Job.id),
            col(Chunk.state) == ChunkState.PENDING,
            col(Chunk.not_before) <= bindparam("now"),
        )
        # In the order of the index: otherwise PostgreSQL reads the whole table for each job, once one job has most of
        # the chunks.
        .order_by(col(Chunk.start_row))
        .correlate(Job)
    )
    # A job may have a hundred thousand chunks; the count stops at the number that there can be slots for.
    some = claimable.limit(bindparam("most_chunks")).subquery()
    pending = select(func.count()).select_from(some).correlate(Job).scalar_subquery().label("pending")
    columns: list[Any] = [
        col(Job.id), col(Job.kind), col(Job.priority), col(Job.ready_at), col(Job.max_slots), col(Job.model_key),
        col(Job.not_before), col(Job.needs), col(Job.project), col(Job.num_rows),
        col(Job.num_done).label("num_done"),
        col(Job.deadline_at), col(Job.promise_at), col(Job.promise_seconds), pending,
        cast(col(Job.needs), String).label("needs_text"),
    ]  # fmt: skip
    query: Select[Any] = select(*columns)
    queued = col(Job.state) == literal(JobState.QUEUED, literal_execute=True)  # in the words of the index
    waiting = query.where(queued, col(Job.project) == bindparam("project"), col(Job.priority) == bindparam("priority"))
    unserved = cast(col(Job.needs), String).in_(bindparam("unserved", expanding=True))
    waiting = waiting.where(or_(col(Job.needs).is_(None), ~unserved))
    has_chunk = claimable.limit(1).scalar_subquery().is_not(None)
    bulk = waiting.where(col(Job.kind) == INFERENCE, col(Job.not_before) <= bindparam("now"), has_chunk)
    trainings = waiting.where(col(Job.kind) == TRAINING, col(Job.not_before) <= bindparam("soon"))
    # Two queries instead of one with an OR, each of which stops at the limit.
    heads = union_all(*(select(_head(one).subquery()) for one in (bulk, trainings))).subquery()
    return query.where(col(Job.state) == JobState.RUNNING, ~IS_ARRAY), select(heads)


def _head(waiting: Select[Any]) -> Select[Any]:
    return waiting.order_by(col(Job.ready_at), col(Job.id)).limit(bindparam("head"))


def _build_projects() -> Select[Any]:
    """The projects with waiting jobs: each is found after the last one in the index, without reading their jobs."""
    queued = col(Job.state) == literal(JobState.QUEUED, literal_execute=True)
    first = select(func.min(Job.project).label("name")).where(queued).cte("projects", recursive=True)
    following = select(func.min(Job.project)).where(queued, col(Job.project) > first.c.name).scalar_subquery()
    every = first.union_all(select(following).where(first.c.name.is_not(None)))
    return select(every.c.name).where(every.c.name.is_not(None))


def _build_leases() -> Select[Any]:
    holds_chunk = exists().where(col(Chunk.lease_id) == col(Lease.id), IS_LEASED)
    columns: list[Any] = [
        col(Lease.id), col(Lease.job_id), col(Lease.slot_id), col(Lease.granted_at), col(Lease.yield_asked),
        col(Lease.yield_for),
        col(Job.state).label("job_state"), holds_chunk.label("working"),
    ]  # fmt: skip
    return select(*columns).join(Job, col(Job.id) == col(Lease.job_id)).where(IS_LIVE)


# The queries are built once, because building them takes longer than running them and would delay every grant.
_RUNNING_JOBS, _WAITING_JOBS = _build_jobs()
_WAITING_PROJECTS = _build_projects()
_LIVE_LEASES = _build_leases()
_HAS_WORK = select(exists().where(col(Job.state).in_((JobState.QUEUED, JobState.RUNNING))))
