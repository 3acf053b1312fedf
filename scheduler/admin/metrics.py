"""System metrics, read in one transaction."""

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
    """The system's metrics at one moment."""

    jobs: Mapping[JobState, int]
    """Number of jobs in each state."""
    slots: Mapping[SlotState, int]
    """Number of slots in each state."""
    slots_busy: int
    """Online slots with a live lease."""
    pending_chunks: int
    """Unclaimed chunks of queued and running jobs."""
    leased_chunks: int
    """Chunks that slots work on now."""
    rows_done: int
    """Rows recorded for all jobs that are not deleted, including row errors."""
    rows_failed: int
    """How many of those rows are row errors."""
    tokens_done: int
    """Tokens that the models saw for those rows."""
    oldest_wait_seconds: float
    """Age of the oldest queued job in seconds; 0 if none is queued."""


def snapshot(db: Database) -> Snapshot:
    """Read the current metrics."""
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
