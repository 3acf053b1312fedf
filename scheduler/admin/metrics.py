"""The numbers that say how the house is doing, read in one transaction, for Prometheus and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState, JobState, SlotState
from jobs.db.tables import Chunk, Job, Lease, Slot


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How the house is doing now."""

    jobs: Mapping[JobState, int]
    """Every state, with the number of jobs in it."""
    slots: Mapping[SlotState, int]
    """Every state, with the number of slots in it."""
    slots_busy: int
    """Slots that are online and under a live lease."""
    pending_chunks: int
    """Chunks of queued and running jobs that nobody has claimed."""
    leased_chunks: int
    """Chunks that a slot works on."""
    rows_done: int
    """Rows recorded for all jobs that are still kept, row errors included."""
    rows_failed: int
    """Of those, row errors."""
    tokens_done: int
    """Tokens the models saw for them."""
    oldest_wait_seconds: float
    """How long ago the oldest queued job was submitted; 0 where none is queued."""


def snapshot(db: Database) -> Snapshot:
    """Read the numbers now."""
    with db.read() as session:
        jobs = session.execute(
            select(
                col(Job.state),
                func.count(),
                func.sum(Job.num_done),
                func.sum(Job.num_failed),
                func.sum(Job.num_tokens),
                func.min(Job.created_at),
            ).group_by(col(Job.state))
        ).all()
        counted = session.execute(select(col(Slot.state), func.count()).group_by(col(Slot.state)))
        slots = {row[0]: row[1] for row in counted}
        busy = (
            select(func.count(func.distinct(Lease.slot_id)))
            .join(Slot, col(Slot.id) == col(Lease.slot_id))
            .where(col(Lease.state).in_(LIVE_LEASE_STATES), col(Slot.state) == SlotState.ONLINE)
        )
        oldest = next((row[5] for row in jobs if row[0] == JobState.QUEUED), None)
        return Snapshot(
            jobs={state: next((row[1] for row in jobs if row[0] == state), 0) for state in JobState},
            slots={state: slots.get(state, 0) for state in SlotState},
            slots_busy=session.scalar(busy) or 0,
            pending_chunks=_count_chunks(session, ChunkState.PENDING),
            leased_chunks=_count_chunks(session, ChunkState.LEASED),
            rows_done=sum(int(row[2]) for row in jobs),
            rows_failed=sum(int(row[3]) for row in jobs),
            tokens_done=sum(int(row[4]) for row in jobs),
            oldest_wait_seconds=0.0 if oldest is None else max(0.0, session.time() - oldest),
        )


def _count_chunks(session: Session, state: ChunkState) -> int:
    working = (JobState.QUEUED, JobState.RUNNING)
    count = (
        select(func.count())
        .select_from(Job)
        .join(Chunk, (col(Chunk.job_id) == col(Job.id)) & (col(Chunk.state) == state))
        .where(col(Job.state).in_(working))
    )
    return session.scalar(count) or 0
