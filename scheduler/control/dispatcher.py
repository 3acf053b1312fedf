"""Carries out the policy's decisions: reads jobs, slots and leases, writes leases, and rings the slots' doorbells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Select, and_, bindparam, exists, func, or_, select
from sqlmodel import Session, col

from jobs import queue
from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, AttemptEnd, ChunkState, JobState, SlotState
from jobs.db.tables import Attempt, Chunk, Job, Lease, Slot
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, ServiceUnavailable
from jobs.ledger import leases
from jobs.ledger.leases import Ring
from jobs.specs.inference import TRAINING, Priority
from scheduler.policy.decide import decide
from scheduler.policy.types import AGED_SECONDS, BRIEF_SECONDS, JobFacts, LeaseFacts, SlotFacts

logger = logging.getLogger(__name__)

_FRESH_SHARE = 0.5  # share of `slot_seconds`; a worker sends a heartbeat each quarter of it
_QUEUE_HEAD = 64  # waiting jobs of each priority that one decision looks at, beyond one for each slot


@dataclass(frozen=True, slots=True)
class Views:
    """The policy's input, read in one transaction."""

    jobs: tuple[JobFacts, ...]
    slots: tuple[SlotFacts, ...]
    leases: tuple[LeaseFacts, ...]
    now: float
    """Unix seconds by the database's clock."""


def dispatch(db: Database, app: Celery, times: LeaseTimes) -> int:
    """Make one decision and carry it out.

    A grant that comes too late (the job was cancelled, the slot went silent) is skipped; the next decision accounts for
    the change.

    Returns:
        The number of leases granted.
    """
    with db.read() as session:
        if not session.scalar(_HAS_WORK):
            return 0  # without jobs, a decision costs only this one query
        views = read_views(session, times)
    decisions = decide(views.jobs, views.slots, views.leases, views.now)
    if decisions.yields:
        leases.ask_yield(db, decisions.yields)
    num_granted, is_redis_away = 0, False
    for grant in decisions.grants:
        try:
            lease_ids = leases.grant(db, grant, lease_seconds=times.lease_seconds)
        except Conflict as error:
            logger.info("a grant came too late: %s", error)
            continue
        rings = [Ring(lease_id, slot_id) for lease_id, slot_id in zip(lease_ids, grant.slot_ids, strict=True)]
        # Rings follow each grant, so that the first slot starts while the other leases are still being written.
        is_redis_away = is_redis_away or ring_all(app, rings) < len(rings)
        num_granted += len(rings)
    return num_granted


def ring_all(app: Celery, rings: Sequence[Ring]) -> int:
    """Ring slots' doorbells. If Redis is away, the remaining rings are left to the reaper, which rings again.

    Returns:
        The number of doorbells rung.
    """
    for number, ring in enumerate(rings):
        try:
            queue.ring(app, ring.slot_id, ring.lease_id)
        except ServiceUnavailable as error:
            logger.warning("%d of %d doorbells not rung, to be rung again: %s", len(rings) - number, len(rings), error)
            return number
    return len(rings)


def explain(session: Transaction, times: LeaseTimes) -> Mapping[str, str]:
    """Why each job at the head of the queue waits, by job id, according to the policy now. Changes nothing."""
    views = read_views(session, times)
    return decide(views.jobs, views.slots, views.leases, views.now).explanations


# -- the policy's input --------------------------------------------------------------------------------------------


def read_views(session: Transaction, times: LeaseTimes) -> Views:
    """Read the policy's input: running jobs, the first waiting jobs of each priority, usable slots and live leases.

    Only the head of the queue is read, so that a decision takes as long with ten thousand waiting jobs as with ten.
    """
    now = session.time()
    slots = _slot_views(session, heard_since=now - times.slot_seconds * _FRESH_SHARE)
    jobs = _candidates(session, now, limit=len(slots) + _QUEUE_HEAD)
    lease_rows = session.execute(_LIVE_LEASES).all()
    waited = _waited_before(session, [job for job in jobs if now - job.created_at > AGED_SECONDS])
    preemptions = _num_preemptions(session, [job.id for job in jobs if job.kind == TRAINING])
    first_grant: dict[str, float] = {}
    for row in lease_rows:
        first_grant[row.job_id] = min(row.granted_at, first_grant.get(row.job_id, row.granted_at))
    return Views(
        jobs=tuple(
            JobFacts(
                id=job.id,
                rank=job.priority,
                created_at=job.created_at,
                waited_seconds=first_grant.get(job.id, now) - waited.get(job.id, job.created_at),
                elastic=job.kind != TRAINING,
                gang_size=(job.max_slots or 1) if job.kind == TRAINING else 1,
                max_slots=None if job.kind == TRAINING else job.max_slots,
                pending_chunks=job.pending,
                model_key=job.model_key,
                not_before=job.not_before,
                preemptable_seconds=times.preemptable_seconds,
                num_preemptions=preemptions.get(job.id, 0),
            )
            for job in jobs
        ),
        slots=slots,
        leases=tuple(
            LeaseFacts(
                id=row.id,
                job_id=row.job_id,
                slot_id=row.slot_id,
                granted_at=row.granted_at,
                working=row.working,
                ending=row.yield_asked or row.job_state != JobState.RUNNING,
            )
            for row in lease_rows
        ),
        now=now,
    )


def _slot_views(session: Session, *, heard_since: float) -> tuple[SlotFacts, ...]:
    rows = session.execute(_USABLE_SLOTS, {"heard_since": heard_since})
    return tuple(SlotFacts(row.id, row.host, tuple(row.warm_models), f"{row.device} {row.name}") for row in rows)


def _candidates(session: Session, now: float, *, limit: int) -> list[Any]:
    """Every running job and, by priority and age, the first waiting jobs that could use a slot now or soon."""
    told = {"now": now, "soon": now + BRIEF_SECONDS, "limit": limit}
    rows = list(session.execute(_RUNNING_JOBS, told))
    for priority in Priority:
        rows.extend(session.execute(_WAITING_JOBS, {**told, "priority": priority.rank}))
    return rows


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


def _num_preemptions(session: Session, training_ids: Sequence[str]) -> dict[str, int]:
    """How often each of these trainings was preempted."""
    if not training_ids:
        return {}
    counted = (
        select(col(Attempt.job_id), func.count().label("number"))
        .where(col(Attempt.job_id).in_(training_ids), col(Attempt.end) == AttemptEnd.PREEMPTED)
        .group_by(col(Attempt.job_id))
    )
    return {row.job_id: row.number for row in session.execute(counted)}


def _build_jobs() -> tuple[Select[Any], Select[Any]]:
    claimable = (
        col(Chunk.job_id) == col(Job.id),
        col(Chunk.state) == ChunkState.PENDING,
        col(Chunk.not_before) <= bindparam("now"),
    )
    # A job may have a hundred thousand chunks; the count stops at the number that there can be slots for.
    some = select(col(Chunk.start_row)).where(*claimable).correlate(Job).limit(bindparam("limit")).subquery()
    pending = select(func.count()).select_from(some).correlate(Job).scalar_subquery().label("pending")
    query: Select[Any] = select(
        col(Job.id), col(Job.kind), col(Job.priority), col(Job.created_at), col(Job.max_slots), col(Job.model_key),
        col(Job.not_before), pending,
    )  # fmt: skip
    waiting = query.where(
        col(Job.state) == JobState.QUEUED,
        col(Job.priority) == bindparam("priority"),
        or_(
            and_(col(Job.not_before) <= bindparam("now"), exists().where(*claimable)),
            and_(col(Job.not_before) <= bindparam("soon"), col(Job.kind) == TRAINING),
        ),
    )
    head = waiting.order_by(col(Job.created_at), col(Job.id)).limit(bindparam("limit"))
    return query.where(col(Job.state) == JobState.RUNNING), head


def _build_leases() -> Select[Any]:
    holds_chunk = exists().where(col(Chunk.lease_id) == col(Lease.id), col(Chunk.state) == ChunkState.LEASED)
    columns: list[Any] = [
        col(Lease.id), col(Lease.job_id), col(Lease.slot_id), col(Lease.granted_at), col(Lease.yield_asked),
        col(Job.state).label("job_state"), holds_chunk.label("working"),
    ]  # fmt: skip
    return select(*columns).join(Job, col(Job.id) == col(Lease.job_id)).where(col(Lease.state).in_(LIVE_LEASE_STATES))


# The queries are built once, because building them takes longer than running them and would delay every grant.
_RUNNING_JOBS, _WAITING_JOBS = _build_jobs()
_LIVE_LEASES = _build_leases()
_USABLE_SLOTS = select(col(Slot.id), col(Slot.host), col(Slot.device), col(Slot.name), col(Slot.warm_models)).where(
    # A slot that missed heartbeats is probably dead, and a lease for it would wait until its ring counts as unanswered.
    col(Slot.state) == SlotState.ONLINE,
    col(Slot.heartbeat_at) >= bindparam("heard_since"),
)
_HAS_WORK = select(exists().where(col(Job.state).in_((JobState.QUEUED, JobState.RUNNING))))
