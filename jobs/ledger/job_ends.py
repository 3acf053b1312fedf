"""What follows from the end of a job, in the transaction that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.db.moves import moving
from jobs.db.states import JobState
from jobs.db.tables import Artifact, Job
from jobs.db.transaction import Transaction
from jobs.ledger import dependencies, families
from jobs.ledger.records import announcements
from jobs.ledger.timing import speeds


def complete(tx: Transaction, job_id: str, made: Sequence[Artifact] = ()) -> bool:
    """Complete a finalizing job, with the artifacts it made, and keep its measured speed. Locks nothing after that.

    Returns:
        Whether the job was finalizing.
    """
    completed = (
        moving(Job, JobState.FINALIZING, JobState.COMPLETED)
        .where(col(Job.id) == job_id)
        .values(ended_at=tx.now(), error_code=None, error_message=None)
    )
    if not tx.changed(completed):
        return False
    row = tx.execute(select(col(Job.num_done), col(Job.num_failed)).where(col(Job.id) == job_id)).one()
    for artifact in made:
        tx.merge(artifact)
    record_end(tx, job_id, JobState.COMPLETED, done=row.num_done, failed=row.num_failed)
    speeds.observe(tx, job_id)
    return True


def record_end(tx: Transaction, job_id: str, state: JobState, **data: Any) -> None:
    """Announce the end of a job, release or cancel the jobs that wait for it, and count it in its array.

    Jobs are always locked in one order: children before their array, otherwise by their ids. A job that waits is
    younger than what it waits for.

    Args:
        state: The job's terminal state, which the caller has set.
        data: What the event says besides.
    """
    ended = [(job_id, state, data)]
    while ended:
        one_id, one_state, facts = ended.pop()
        announcements.announce_job(tx, one_id, one_state, **facts)
        for child_id in dependencies.resolve(tx, one_id, one_state):
            child = tx.get_one(Job, child_id)
            ended.append((child_id, JobState.CANCELLED, {"code": child.error_code, "reason": child.error_message}))
        array_id = tx.scalar(select(col(Job.parent_id)).where(col(Job.id) == one_id))
        array_end = None if array_id is None else families.count_end(tx, array_id, one_state)
        if array_id is not None and array_end is not None:
            ended.append((array_id, *array_end))
