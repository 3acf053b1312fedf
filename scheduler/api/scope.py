"""What a key sees: objects of its own project, or all objects for the operator's key. Others do not exist for it."""

from __future__ import annotations

from sqlmodel import Session

from jobs.config.projects import OPERATOR, sees
from jobs.db.tables import ApiKey, Batch, Job, Webhook
from jobs.errors import NotFound
from jobs.ledger import batches, webhooks
from jobs.ledger import jobs as job_ledger


def scope_of(key: ApiKey) -> str | None:
    """The project whose objects a list shows; None for all projects."""
    return None if key.project == OPERATOR else key.project


def find_job(session: Session, job_id: str, key: ApiKey) -> Job:
    """Return a job.

    Raises:
        NotFound: There is no such job, or it belongs to another project; the message does not say which.
    """
    job = job_ledger.get(session, job_id)
    if not sees(key.project, job.project):
        raise NotFound(f"there is no job '{job_id}'")
    return job


def find_batch(session: Session, batch_id: str, key: ApiKey) -> Batch:
    """Return a batch.

    Raises:
        NotFound: See `find_job`.
    """
    batch = batches.get(session, batch_id)
    if not sees(key.project, batch.project):
        raise NotFound(f"there is no batch '{batch_id}'")
    return batch


def find_webhook(session: Session, webhook_id: str, key: ApiKey) -> Webhook:
    """Return a webhook.

    Raises:
        NotFound: See `find_job`.
    """
    webhook = webhooks.get(session, webhook_id)
    if not sees(key.project, webhook.project):
        raise NotFound(f"there is no webhook '{webhook_id}'")
    return webhook
