"""How the end of a job or batch is told: a line of its history, and an event for each webhook of its project.

Both are written in the transaction that makes the end, so that they stand if and only if it does.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.db.states import JobState
from jobs.db.tables import Batch, Job
from jobs.db.transaction import Transaction
from jobs.ledger import webhooks


def tell_job(tx: Transaction, job_id: str, state: JobState, **data: Any) -> None:
    """Tell that a job has come to a terminal state; one of a batch is told to no webhook, since its batch will be."""
    tx.record(job_id, f"job.{state}", **data)
    own_project = select(col(Job.project)).where(col(Job.id) == job_id, col(Job.batch_id).is_(None))
    project = tx.scalar(own_project)
    if project is not None:
        webhooks.announce(tx, f"job.{state}", job_id, project=project)


def tell_batch(tx: Transaction, batch: Batch) -> None:
    """Tell that a batch has come to a terminal state."""
    done = {"completed": batch.num_completed, "failed": batch.num_failed}
    tx.record(batch.id, f"batch.{batch.state}", **done)
    webhooks.announce(tx, f"batch.{batch.state}", batch.id, project=batch.project)
