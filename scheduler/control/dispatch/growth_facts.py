"""What decides whether it pays for a job to load its model on one more slot: what is left, and how long it loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import exists, select
from sqlmodel import Session, col

from jobs.config.times import LeaseTimes
from jobs.db.states import LIVE_LEASE_STATES, ChunkState
from jobs.db.tables import Chunk, Job, Lease
from jobs.db.transaction import Transaction
from jobs.ledger.timing import rates
from jobs.specs.needs import Needs
from scheduler.control.dispatch.slot_facts import read_slots
from scheduler.policy.growth import most_slots
from scheduler.policy.types import JobFacts, LeaseFacts, SlotFacts


def with_growth(
    session: Session,
    jobs: Sequence[JobFacts],
    rows_left: Mapping[str, int],
    slots: Iterable[SlotFacts],
    leases: Iterable[LeaseFacts],
) -> tuple[JobFacts, ...]:
    """The jobs with the times by which the policy decides whether they grow; nothing is read for those that cannot.

    Args:
        rows_left: Job id -> number of rows that are left.
    """
    kind_of = {slot.id: slot.kind for slot in slots}
    kinds: dict[str, list[str]] = {}
    for lease in leases:
        if not lease.ending and lease.slot_id in kind_of:
            kinds.setdefault(lease.job_id, []).append(kind_of[lease.slot_id])
    known = rates.of_jobs(session, [job.id for job in jobs if _may_grow(job, len(kinds.get(job.id, ())))])
    return tuple(
        replace(
            job,
            work_seconds=known[job.id].work_seconds(rows_left[job.id], kinds.get(job.id, ())),
            loading_seconds=known[job.id].loading_seconds,
        )
        if job.id in known
        else job
        for job in jobs
    )


def why_not_growing(session: Transaction, times: LeaseTimes, jobs: Sequence[Job]) -> dict[str, str]:
    """Job id -> why a running job gets no more slots, for those that leave free slots unused since loading is long."""
    claimable = exists().where(col(Chunk.job_id) == col(Job.id), col(Chunk.state) == ChunkState.PENDING)
    ids = [job.id for job in jobs if job.max_slots != 1]
    unclaimed = set(session.scalars(select(col(Job.id)).where(col(Job.id).in_(ids), claimable))) if ids else set()
    known = rates.of_jobs(session, unclaimed)
    if not known:
        return {}
    slots = read_slots(session, times, session.time())
    live = select(col(Lease.slot_id), col(Lease.job_id)).where(col(Lease.state).in_(LIVE_LEASE_STATES))
    holder = {row.slot_id: row.job_id for row in session.execute(live)}
    reasons: dict[str, str] = {}
    for job in jobs:
        if job.id not in known:
            continue
        needs = Needs.from_stored(job.needs)
        free = [slot for slot in slots if slot.id not in holder and needs.met_by(slot)]
        held = [slot.kind for slot in slots if holder.get(slot.id) == job.id]
        if not free or not held or len(held) == job.max_slots:
            continue
        work_seconds = known[job.id].work_seconds(job.num_rows - job.num_done, held)
        facts = JobFacts(job.id, 0, 0.0, work_seconds=work_seconds, loading_seconds=known[job.id].loading_seconds)
        is_cold = all(job.model_key not in slot.warm_models for slot in free)
        if is_cold and all(len(held) >= most_slots(facts, slot.kind) for slot in free):
            seconds = min(facts.loading_seconds[slot.kind] for slot in free)
            reasons[job.id] = (
                f"gets no more slots: too little is left to load its model on another one ({seconds:.0f} s)"
            )
    return reasons


def _may_grow(job: JobFacts, num_held: int) -> bool:
    return job.elastic and job.max_slots != 1 and job.pending_chunks > (0 if num_held else 1)
