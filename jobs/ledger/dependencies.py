"""Which jobs wait for others or use their models, and what the end of a job means for those that wait for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, exists, select
from sqlmodel import Session, col

from jobs.config.projects import sees
from jobs.db.moves import move
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Cron, Dependency, Job
from jobs.db.transaction import Transaction
from jobs.errors import DependencyFailed, InvalidModel, InvalidSpec
from jobs.specs.array_spec import ARRAY, SWEEP
from jobs.specs.fields import JOB_PREFIX, parse_time


def begin_wait(tx: Transaction, job: Job, needed: Mapping[str, tuple[str, str]]) -> None:
    """Make a new job wait for those of its parents that have not ended; without any, it is ready.

    A child of an array is ready when the array has a place for it.

    Args:
        job: The new job, with its spec, project and time of submission.
        needed: See `jobs.specs.inference.dependencies`.

    Raises:
        InvalidSpec: The project has no such job, or it has ended without completing, which the new job needs.
        InvalidModel: The same of the job whose model the new one uses.
    """
    # The parents' rows are locked, so that none of them ends before this transaction has recorded that a job waits.
    rows = select(col(Job.id), col(Job.state), col(Job.project)).where(col(Job.id).in_(needed)).order_by(col(Job.id))
    parents = {row.id: row for row in tx.execute(rows.with_for_update(read=True))} if needed else {}
    waits = False
    for parent_id, (param, when) in needed.items():
        parent = parents.get(parent_id)
        error = InvalidModel if param == "model" else InvalidSpec
        if parent is None or not sees(job.project, parent.project):
            raise error(f"{param} '{JOB_PREFIX}{parent_id}': there is no such job", param=param)
        if not parent.state.is_terminal:
            tx.add(Dependency(job_id=job.id, parent_id=parent_id, condition=when))
            waits = True
        elif when == "ok" and parent.state != JobState.COMPLETED:
            raise error(f"{param} '{JOB_PREFIX}{parent_id}': that job is {parent.state}", param=param)
    if not waits and job.parent_id is None:
        make_ready(job, job.created_at)


def resolve(tx: Transaction, parent_id: str, state: JobState) -> list[str]:
    """Release or cancel the jobs that wait for a job which ends in this transaction.

    Returns:
        The ids of the jobs that were cancelled, because they need a completed parent. The caller announces their end.
    """
    waiting = select(col(Dependency.job_id)).where(col(Dependency.parent_id) == parent_id)
    children = tx.scalars(select(Job).where(col(Job.id).in_(waiting)).order_by(col(Job.id)).with_for_update()).all()
    if not children:
        return []
    # Only under the children's locks: two parents that end at the same time must see each other's deletion.
    needed = delete(Dependency).where(col(Dependency.parent_id) == parent_id)
    when = {
        row.job_id: row.condition
        for row in tx.execute(needed.returning(col(Dependency.job_id), col(Dependency.condition)))
    }
    cancelled: list[str] = []
    now = tx.time()
    for child in children:
        if child.state != JobState.VALIDATING:
            continue  # it was cancelled or expired while it waited
        if when[child.id] == "ok" and state != JobState.COMPLETED:
            move(child, JobState.CANCELLED)
            error = DependencyFailed(f"job {parent_id}, which this job comes after, is {state}")
            child.ended_at, child.error_code, child.error_message = now, error.code, error.message
            cancelled.append(child.id)
        elif child.parent_id is None and not tx.scalar(select(exists().where(col(Dependency.job_id) == child.id))):
            make_ready(child, now)
    tx.flush()
    return cancelled


def parents_of(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, JobState]]:
    """Return the parents that each of these jobs still waits for, with their states."""
    if not job_ids:
        return {}
    rows = (
        select(col(Dependency.job_id), col(Job.id), col(Job.state))
        .join(Job, col(Job.id) == col(Dependency.parent_id))
        .where(col(Dependency.job_id).in_(job_ids))
        .order_by(col(Job.id))
    )
    found: dict[str, dict[str, JobState]] = {}
    for child_id, parent_id, state in session.execute(rows):
        found.setdefault(child_id, {})[parent_id] = state
    return found


def make_ready(job: Job, now: float) -> None:
    """Let the job begin, not before its `start_at`. Its wait for slots and its time limit count from then."""
    start_at, time_limit = job.spec.get("start_at"), job.spec.get("time_limit")
    job.ready_at = now if start_at is None else max(now, parse_time(start_at))
    if time_limit is not None and job.kind != ARRAY:  # an array's is that of each child
        job.deadline_at = job.ready_at + time_limit


def models_in_use(session: Session) -> set[str]:
    """Return the ids of the jobs whose model or processor live jobs and cron entries use (`job:<id>`).

    Specs are read as stored JSON, since a spec from an older version may no longer be valid. Of an array whose children
    have different models, every value that may be the id of a job counts, unless the values are in a file.
    """
    live = col(Job.state).in_(LIVE_JOB_STATES)
    used: set[str] = set()
    for table, conditions in ((Job, (live,)), (Cron, ())):
        spec: Any = table.spec
        for model, *values in session.execute(select(spec["model"], spec[ARRAY], spec[SWEEP]).where(*conditions)):
            if "${" in str(model):
                used.update(_job_ids(values))
            used.update(_job_ids(model))
    return used


def _job_ids(node: object) -> Iterator[str]:
    """Yield the texts in a JSON value that have the form of a job's id, with or without `job:` before it."""
    if isinstance(node, str):
        job_id = node.removeprefix(JOB_PREFIX)
        if job_id.startswith("job_"):
            yield job_id
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _job_ids(inner)
