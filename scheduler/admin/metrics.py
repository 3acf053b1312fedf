"""System metrics, read in one transaction that takes no longer with more jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState, JobState, SlotState
from jobs.db.tables import Chunk, Job, Lease, Slot
from jobs.ledger.accounts import totals as totals_ledger
from jobs.ledger.accounts.totals import Totals
from jobs.ledger.timing import forecasts
from jobs.ledger.timing.forecasts import Accuracy, What
from jobs.specs.inference import Priority


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The system's metrics at one moment."""

    jobs: Mapping[JobState, int]
    """Number of jobs in each state."""
    slots: Mapping[SlotState, int]
    """Number of slots in each state."""
    slots_busy: int
    """Online slots with a live lease."""
    rows_waiting: int
    """Rows of queued and running inference jobs that are not recorded yet."""
    leased_chunks: int
    """Chunks that slots work on now."""
    rows_done: int
    """Rows recorded for all jobs that are not deleted, including row errors."""
    rows_failed: int
    """How many of those rows are row errors."""
    tokens_done: int
    """Tokens that the models saw for those rows."""
    oldest_wait_seconds: float
    """Seconds since the queued job that has waited longest was ready; 0 if none is queued."""
    forecasts: Mapping[tuple[int, What], Accuracy]
    """How far forecasts were wrong, by the rank of the jobs' priority and by what was said."""


def snapshot(db: Database) -> Snapshot:
    """Read the current metrics."""
    with db.read() as session:
        totals = totals_ledger.read(session)
        counted = session.execute(select(col(Slot.state), func.count()).group_by(col(Slot.state)))
        slots = {row[0]: row[1] for row in counted}
        busy = (
            select(func.count(func.distinct(Lease.slot_id)))
            .join(Slot, col(Slot.id) == col(Lease.slot_id))
            .where(col(Lease.state).in_(LIVE_LEASE_STATES), col(Slot.state) == SlotState.ONLINE)
        )
        oldest = min((each for each in session.execute(_OLDEST).one() if each is not None), default=None)
        waiting = [totals.get(("inference", state), Counter[str]()) for state in (JobState.QUEUED, JobState.RUNNING)]
        return Snapshot(
            jobs={state: _sum(totals, "num_jobs", state) for state in JobState},
            slots={state: slots.get(state, 0) for state in SlotState},
            slots_busy=session.scalar(busy) or 0,
            rows_waiting=sum(each["num_rows"] - each["num_done"] for each in waiting),
            leased_chunks=int(session.scalar(_LEASED_CHUNKS) or 0),
            rows_done=_sum(totals, "num_done"),
            rows_failed=_sum(totals, "num_failed"),
            tokens_done=_sum(totals, "num_tokens"),
            oldest_wait_seconds=0.0 if oldest is None else max(0.0, session.time() - oldest),
            forecasts=forecasts.accuracy(session),
        )


def _sum(totals: Totals, name: str, state: JobState | None = None) -> int:
    """The sum of one number over all kinds of jobs, in one state or in all."""
    return sum(numbers[name] for (_, each), numbers in totals.items() if state in (None, each))


def _build_oldest() -> Select[Any]:
    """When the oldest queued job of each priority was ready: the first entry of a range of the index by state."""
    ready = select(func.min(Job.ready_at)).where(col(Job.state) == JobState.QUEUED)
    return select(
        *(
            ready.where(col(Job.priority) == priority.rank).scalar_subquery().label(priority.value)
            for priority in Priority
        )
    )


def _build_leased() -> Select[Any]:
    """The number of leased chunks. It is counted for each running job, since the index of chunks is by job."""
    leased = (
        select(func.count())
        .where(col(Chunk.job_id) == col(Job.id), col(Chunk.state) == ChunkState.LEASED)
        .correlate(Job)
        .scalar_subquery()
    )
    return select(func.sum(leased)).where(col(Job.state).in_((JobState.RUNNING, JobState.CANCELLING)))


_OLDEST = _build_oldest()
_LEASED_CHUNKS = _build_leased()
