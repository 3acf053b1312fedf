"""Webhooks: create, list and delete them, announce events, claim deliveries and record their results.

An event is announced in the transaction of the change that it reports, as one delivery for each webhook, and sent
afterwards. An attempt is claimed before it is made, and counts from then on. A claim whose holder died expires, and the
delivery is due again. It is sent under the same id until the receiver accepts it or its attempts are used up.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy import Select, func, select
from sqlalchemy import delete as sql_delete
from sqlmodel import Session, col

from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move
from jobs.db.states import BatchState, DeliveryState, JobState
from jobs.db.tables import Webhook, WebhookDelivery
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, NotFound, StokerError
from jobs.ledger.records import pages
from jobs.retries import GiveUp, RetryAt, RetryPolicy, decide

EVENT_TYPES = (
    *(f"batch.{state}" for state in BatchState if state.is_terminal),
    *(f"job.{state}" for state in JobState if state.is_terminal),
)
"""The types of events that a webhook can receive."""
TEST_EVENT = "webhook.test"
SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32
_MOST_WEBHOOKS = 100  # per project, since each event is sent to all of them
_HELD_UP_AT_ONCE = 500  # the most deliveries that one failed connection counts for


@dataclass(frozen=True, slots=True)
class Sending:
    """A claimed attempt of a delivery."""

    delivery_id: str
    webhook_id: str
    attempt: int
    """Number of this attempt, from 1. Its result is recorded only while it is the latest attempt."""
    url: str
    secret: str = field(repr=False)
    body: str
    """The JSON text that is signed and sent."""
    at: float
    """When the attempt was claimed, in Unix seconds of the database's clock."""


# -- create, find, delete ------------------------------------------------------------------------------------------


def create(db: Database, url: str, *, events: Sequence[str], project: str) -> Webhook:
    """Create a webhook with a new secret.

    Args:
        url: Address of the receiver, already checked.
        events: Types of events to send, from `EVENT_TYPES`; empty for all.
        project: The project whose events are sent.

    Raises:
        Conflict: The project has the largest allowed number of webhooks already.
    """
    with db.write() as tx:
        others = tx.scalar(select(func.count()).where(col(Webhook.project) == project)) or 0
        if others >= _MOST_WEBHOOKS:
            raise Conflict(f"project '{project}' has {others} webhooks already; delete one first")
        webhook = Webhook(
            id=new_id("webhook"),
            project=project,
            url=url,
            secret=SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode(),
            events=list(dict.fromkeys(events)),
            created_at=tx.time(),
        )
        tx.add(webhook)
    return webhook


def get(session: Session, webhook_id: str) -> Webhook:
    """Return the webhook with this id; raises NotFound."""
    return pages.find(session, Webhook, webhook_id)


def list_webhooks(
    session: Session, *, project: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Webhook], bool]:
    """Return a page of webhooks and whether more follow; see `pages.owned_page`."""
    return pages.owned_page(session, Webhook, project=project, after=after, limit=limit)


def deliveries(
    session: Session, webhook_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[WebhookDelivery], bool]:
    """Return a page of a webhook's deliveries, newest first.

    Args:
        after: Id of the last delivery of the previous page.

    Returns:
        The deliveries, and whether more follow.

    Raises:
        NotFound: The webhook has no delivery `after`.
    """
    last = None if after is None else session.get(WebhookDelivery, after)
    if after is not None and (last is None or last.webhook_id != webhook_id):
        raise NotFound(f"webhook {webhook_id} has no delivery '{after}'")
    is_its = col(WebhookDelivery.webhook_id) == webhook_id
    return pages.page(session, WebhookDelivery, is_its, last=last, limit=limit)


def delete(db: Database, webhook_id: str) -> None:
    """Delete a webhook and its deliveries, including those that were not sent yet.

    Raises:
        NotFound: There is no such webhook.
    """
    with db.write() as tx:
        gone = sql_delete(Webhook).where(col(Webhook.id) == webhook_id)
        if not tx.changed(gone):
            raise NotFound(f"there is no webhook '{webhook_id}'")
        # The webhook's row is deleted first: that waits for transactions that announce an event to it, so that their
        # deliveries are deleted too.
        tx.execute(sql_delete(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == webhook_id))


# -- announce and deliver ------------------------------------------------------------------------------------------


def announce(tx: Transaction, event_type: str, subject_id: str, *, project: str) -> None:
    """Add a delivery for each webhook of the project that wants the event, in the caller's transaction."""
    of_project = select(Webhook).where(col(Webhook.project) == project)
    found = tx.scalars(of_project.with_for_update(read=True, key_share=True)).all()  # locked against deletion
    wanting = [webhook.id for webhook in found if not webhook.events or event_type in webhook.events]
    if wanting:
        _add_deliveries(tx, wanting, event_type, subject_id)


def announce_test(db: Database, webhook_id: str) -> WebhookDelivery:
    """Add the delivery of a test event for one webhook, whatever events it wants.

    Raises:
        NotFound: There is no such webhook.
    """
    with db.write() as tx:
        locked = select(Webhook).where(col(Webhook.id) == webhook_id).with_for_update(read=True, key_share=True)
        if tx.scalar(locked) is None:
            raise NotFound(f"there is no webhook '{webhook_id}'")
        return _add_deliveries(tx, [webhook_id], TEST_EVENT, webhook_id)[0]


def due(tx: Transaction) -> list[str]:
    """Return the ids of the webhooks with deliveries that are due, longest waiting first."""
    is_due = (col(WebhookDelivery.state) == DeliveryState.PENDING, col(WebhookDelivery.not_before) <= tx.now())
    by_webhook = select(col(WebhookDelivery.webhook_id)).where(*is_due).group_by(col(WebhookDelivery.webhook_id))
    return list(tx.scalars(by_webhook.order_by(func.min(WebhookDelivery.not_before))))


def claim(db: Database, webhook_id: str, *, max_attempts: int, claim_seconds: float) -> Sending | None:
    """Claim the webhook's delivery that has been due longest; the attempt counts from now on.

    Args:
        max_attempts: Attempts per delivery. A delivery whose last claim expired fails here, since it may be what kills
            the senders.
        claim_seconds: Time after which the delivery is due again if no result was recorded.

    Returns:
        The attempt to make, or None if nothing is due.
    """
    with db.write() as tx:
        now = tx.time()
        delivery = tx.scalar(_due_of(tx, webhook_id, limit=1))
        while delivery is not None and delivery.attempts >= max_attempts:
            move(delivery, DeliveryState.FAILED)
            delivery.ended_at = now
            delivery.error = f"{delivery.error or 'interrupted'} (tried {delivery.attempts} times)"
            tx.flush()
            delivery = tx.scalar(_due_of(tx, webhook_id, limit=1))
        webhook = tx.get(Webhook, webhook_id)
        if delivery is None or webhook is None:  # the webhook may have been deleted meanwhile, with its deliveries
            return None
        delivery.attempts, delivery.not_before = delivery.attempts + 1, now + claim_seconds
        return Sending(
            delivery_id=delivery.id,
            webhook_id=webhook_id,
            attempt=delivery.attempts,
            url=webhook.url,
            secret=webhook.secret,
            body=delivery.body,
            at=now,
        )


def record_delivered(db: Database, sending: Sending, status_code: int) -> None:
    """Record that a delivery was accepted.

    Raises:
        Conflict: The delivery was claimed again, or its webhook was deleted.
    """
    with db.write() as tx:
        delivery = _claimed(tx, sending)
        move(delivery, DeliveryState.DELIVERED)
        delivery.ended_at = tx.time()
        delivery.status_code, delivery.error = status_code, None


def record_failed(
    db: Database, sending: Sending, error: StokerError, policy: RetryPolicy, *, status_code: int | None = None
) -> None:
    """Schedule a failed delivery again, or end its attempts.

    Args:
        error: Why the attempt failed.
        policy: Number of attempts and delays between them.
        status_code: HTTP status of the response. None if there was no response: the receiver cannot be reached, so the
            attempt counts for all of its due deliveries. Otherwise, deliveries to a dead receiver, attempted one by
            one, would accumulate without limit.

    Raises:
        Conflict: The delivery was claimed again, or its webhook was deleted.
    """
    with db.write() as tx:
        failed = [_claimed(tx, sending)]
        if status_code is None:
            others = tx.scalars(_due_of(tx, sending.webhook_id, limit=_HELD_UP_AT_ONCE)).all()
            for other in others:
                other.attempts += 1
            failed += others
        now = tx.time()
        for delivery in failed:
            delivery.status_code = status_code
            match decide(error, delivery.attempts, policy):
                case RetryAt(delay_seconds):
                    delivery.not_before, delivery.error = now + delay_seconds, error.message
                case GiveUp(reason):
                    move(delivery, DeliveryState.FAILED)
                    delivery.ended_at, delivery.error = now, reason


# -- shared --------------------------------------------------------------------------------------------------------


def _add_deliveries(
    tx: Transaction, webhook_ids: Sequence[str], event_type: str, subject_id: str
) -> list[WebhookDelivery]:
    now = tx.time()
    event = {
        "id": new_id("event"),
        "object": "event",
        "created_at": int(now),
        "type": event_type,
        "data": {"id": subject_id},
    }
    body = orjson.dumps(event).decode()
    written = [
        WebhookDelivery(
            id=new_id("delivery"), webhook_id=webhook_id, type=event_type, body=body, not_before=now, created_at=now
        )
        for webhook_id in webhook_ids
    ]
    tx.add_all(written)
    tx.flush()
    return written


def _due_of(tx: Transaction, webhook_id: str, *, limit: int) -> Select[WebhookDelivery]:
    is_due = (col(WebhookDelivery.state) == DeliveryState.PENDING, col(WebhookDelivery.not_before) <= tx.now())
    of_webhook = select(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == webhook_id, *is_due)
    return of_webhook.order_by(col(WebhookDelivery.not_before)).limit(limit).with_for_update(skip_locked=True)


def _claimed(session: Session, sending: Sending) -> WebhookDelivery:
    """Lock the delivery's row, if this claim is still the latest."""
    claimed = select(WebhookDelivery).where(
        col(WebhookDelivery.id) == sending.delivery_id,
        col(WebhookDelivery.state) == DeliveryState.PENDING,
        col(WebhookDelivery.attempts) == sending.attempt,
    )
    delivery = session.scalar(claimed.with_for_update())
    if delivery is None:
        raise Conflict(f"attempt {sending.attempt} is no longer the latest of delivery {sending.delivery_id}")
    return delivery
