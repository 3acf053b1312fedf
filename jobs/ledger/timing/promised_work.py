"""The work of jobs that were promised to be done by a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.states import LIVE_JOB_STATES
from jobs.db.tables import Job


class Promised(Protocol):
    """The columns of a job with a promise."""

    num_rows: int
    num_done: int
    promise_seconds: float | None


@dataclass(frozen=True, slots=True)
class PromisedWork:
    """What is left of a promised job."""

    project: str
    at: float
    """When it must be done, Unix seconds."""
    slot_seconds: float
    """Upper bound of the work that is left."""


def seconds_left(job: Promised) -> float:
    """Upper bound of the slot-seconds that are left of a job, by the part of it that is done."""
    share_left = 1 - job.num_done / job.num_rows if job.num_rows else 1.0
    return (job.promise_seconds or 0.0) * share_left


def promised_work(session: Session) -> list[PromisedWork]:
    """What is left of all live jobs with a promise."""
    columns: list[Any] = [
        col(Job.project), col(Job.promise_at), col(Job.promise_seconds), col(Job.num_rows),
        col(Job.num_done).label("num_done"),
    ]  # fmt: skip
    query = select(*columns).where(col(Job.state).in_(LIVE_JOB_STATES), col(Job.promise_at).is_not(None))
    return [PromisedWork(row.project, row.promise_at, seconds_left(row)) for row in session.execute(query)]


def busy_projects(session: Session) -> set[str]:
    """The projects that have live jobs."""
    return set(session.scalars(select(col(Job.project)).where(col(Job.state).in_(LIVE_JOB_STATES)).distinct()))
