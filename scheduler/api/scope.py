"""What a key sees: the things of its own project, or all where it is the operator's. The rest is as if not there."""

from __future__ import annotations

from sqlmodel import Session

from jobs.config.projects import OPERATOR, sees
from jobs.db.tables import ApiKey, Batch, Job, Webhook
from jobs.errors import NotFound
from jobs.ledger import batches, webhooks
from jobs.ledger import jobs as job_ledger


def scope_of(key: ApiKey) -> str | None:
    """The project whose things a list shows; None for all of them."""
    return None if key.project == OPERATOR else key.project


def find_job(session: Session, job_id: str, key: ApiKey) -> Job:
    """The job.

    Raises:
        NotFound: there is none of this id, or it is another project's; which of both is not told.
    """
    job = job_ledger.get(session, job_id)
    if not sees(key.project, job.project):
        raise NotFound(f"there is no job '{job_id}'")
    return job


def find_batch(session: Session, batch_id: str, key: ApiKey) -> Batch:
    """The batch.

    Raises:
        NotFound: as for a job.
    """
    batch = batches.get(session, batch_id)
    if not sees(key.project, batch.project):
        raise NotFound(f"there is no batch '{batch_id}'")
    return batch


def find_webhook(session: Session, webhook_id: str, key: ApiKey) -> Webhook:
    """The webhook.

    Raises:
        NotFound: as for a job.
    """
    webhook = webhooks.get(session, webhook_id)
    if not sees(key.project, webhook.project):
        raise NotFound(f"there is no webhook '{webhook_id}'")
    return webhook
