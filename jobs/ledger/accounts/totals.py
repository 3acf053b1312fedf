"""Totals of jobs by project, kind and state, which triggers keep: read them, and merge the parts that triggers add."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, insert, literal, select, union_all
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Job, JobTotal
from jobs.specs.inference import INFERENCE

NUMBERS = ("num_jobs", "num_rows", "num_done", "num_failed", "num_tokens")
"""What is counted, of `JobTotal`."""
_CHANGING = (JobState.RUNNING, JobState.CANCELLING)
IS_AT_WORK = col(Job.state).in_(bindparam("states_at_work", _CHANGING, expanding=True, literal_execute=True))
"""The condition that a job's numbers change with each chunk, in the words of the index `jobs_at_work`."""
_MOST_PARTS = 200  # parts beyond one for each project, kind and state that a reader may have to add up

Totals = dict[tuple[str, JobState], Counter[str]]
"""Kind and state of jobs -> their totals, by the names of `NUMBERS`."""


def read(session: Session) -> Totals:
    """Return the totals of all projects. This takes no longer with more jobs, only with more running jobs."""
    place = (col(JobTotal.kind), col(JobTotal.state))
    kept = select(*place, *(func.sum(getattr(JobTotal, name)) for name in NUMBERS)).group_by(*place)
    changing = select(
        col(Job.kind), col(Job.state), literal(0), *(getattr(Job, name) for name in NUMBERS if name != "num_jobs")
    ).where(IS_AT_WORK)
    totals: Totals = {}
    # One statement, so that PostgreSQL reads both parts as of the same moment.
    for kind, state, *numbers in session.execute(union_all(kept, changing)):
        total = totals.setdefault((kind, JobState(state)), Counter(dict.fromkeys(NUMBERS, 0)))
        total.update(dict(zip(NUMBERS, map(int, numbers), strict=True)))
    return totals


def rows_left(project: str) -> Select[Any]:
    """A query of the numbers whose sum is the number of unfinished rows of a project's inference jobs."""
    live = [state for state in LIVE_JOB_STATES if state not in _CHANGING]
    kept = select((col(JobTotal.num_rows) - col(JobTotal.num_done)).label("num_rows")).where(
        col(JobTotal.project) == project, col(JobTotal.kind) == INFERENCE, col(JobTotal.state).in_(live)
    )
    changing = select((col(Job.num_rows) - col(Job.num_done)).label("num_rows")).where(
        col(Job.project) == project, col(Job.kind) == INFERENCE, IS_AT_WORK
    )
    return select(union_all(kept, changing).subquery())


def merge(db: Database) -> None:
    """Replace the parts by one for each project, kind and state, if there are many."""
    key = (col(JobTotal.project), col(JobTotal.kind), col(JobTotal.state))
    several = select(*key, func.count().label("number")).group_by(*key).having(func.count() > 1)
    with db.read() as session:
        found = session.execute(several).all()
    if sum(row.number - 1 for row in found) <= _MOST_PARTS:
        return
    with db.write() as tx:
        parts = delete(JobTotal).where(col(JobTotal.project).in_({row.project for row in found}))
        merged: dict[tuple[str, str, JobState], Counter[str]] = {}
        for part in tx.scalars(parts.returning(JobTotal)):
            total = merged.setdefault((part.project, part.kind, part.state), Counter(dict.fromkeys(NUMBERS, 0)))
            total.update({name: getattr(part, name) for name in NUMBERS})
        rows = [
            {"project": project, "kind": kind, "state": state, **numbers}
            for (project, kind, state), numbers in merged.items()
            if any(numbers.values())
        ]
        if rows:
            tx.execute(insert(JobTotal), rows)
