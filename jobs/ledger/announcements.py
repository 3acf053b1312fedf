"""How the end of a job or batch is told: a line of its history, and an event for each webhook of its project.

Both are written in the transaction that makes the end, so that they stand if and only if it does.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Batch, Job
from jobs.ledger import history, webhooks


def tell_job(session: Session, db: Database, job_id: str, state: JobState, **data: Any) -> None:
    """Tell that a job has come to a terminal state; one of a batch is told to no webhook, since its batch will be."""
    history.record(session, db, job_id, f"job.{state}", **data)
    own_project = select(col(Job.project)).where(col(Job.id) == job_id, col(Job.batch_id).is_(None))
    project = session.scalar(own_project)
    if project is not None:
        webhooks.announce(session, db, f"job.{state}", job_id, project=project)


def tell_batch(session: Session, db: Database, batch: Batch) -> None:
    """Tell that a batch has come to a terminal state."""
    done = {"completed": batch.num_completed, "failed": batch.num_failed}
    history.record(session, db, batch.id, f"batch.{batch.state}", **done)
    webhooks.announce(session, db, f"batch.{batch.state}", batch.id, project=batch.project)
