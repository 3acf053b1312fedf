"""Announces the end of a job or batch: an event in its history, and a delivery for each webhook of its project.

Both are written in the transaction that ends the job or batch, so that they exist if and only if it has ended.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.db.states import JobState
from jobs.db.tables import Batch, Job
from jobs.db.transaction import Transaction
from jobs.ledger.records import webhooks


def announce_job(tx: Transaction, job_id: str, state: JobState, **data: Any) -> None:
    """Announce a job's terminal state. No webhook is called for a job of a batch or a child of an array, since that
    batch or array has its own event."""
    tx.record(job_id, f"job.{state}", **data)
    is_alone = (col(Job.batch_id).is_(None), col(Job.parent_id).is_(None))
    own_project = select(col(Job.project)).where(col(Job.id) == job_id, *is_alone)
    project = tx.scalar(own_project)
    if project is not None:
        webhooks.announce(tx, f"job.{state}", job_id, project=project)


def announce_batch(tx: Transaction, batch: Batch) -> None:
    """Announce a batch's terminal state."""
    done = {"completed": batch.num_completed, "failed": batch.num_failed}
    tx.record(batch.id, f"batch.{batch.state}", **done)
    webhooks.announce(tx, f"batch.{batch.state}", batch.id, project=batch.project)
