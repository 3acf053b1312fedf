"""Notices for a job's user about how it runs although nothing failed, at most one per job and code."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.tables import Notice

PADDING = "padding"
"""Code of the notice that rows of different lengths cannot share a batch."""


def add(db: Database, job_id: str, code: str, message: str) -> bool:
    """Add a notice unless the job has one with this code already. Returns whether it was added."""
    with db.write() as tx:
        fresh = tx.insert(Notice).values(job_id=job_id, code=code, message=message, at=tx.time())
        only_new = fresh.on_conflict_do_nothing(index_elements=["job_id", "code"]).returning(col(Notice.code))
        added = tx.scalar(only_new) is not None
        if added:
            tx.record(job_id, "job.notice", code=code, message=message)
    return added


def of_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, list[Notice]]:
    """Return the notices of jobs by job id, oldest first; jobs without notices are absent."""
    query = select(Notice).where(col(Notice.job_id).in_(job_ids)).order_by(col(Notice.at), col(Notice.code))
    found: dict[str, list[Notice]] = {}
    for notice in session.scalars(query):
        found.setdefault(notice.job_id, []).append(notice)
    return found
