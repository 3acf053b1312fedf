"""Webhook verbs: make, list, delete; announce an event to those that want it; claim a delivery, record how it went.

An event is announced in the transaction of the change that it tells: one delivery for each webhook, sent afterwards.
A try is claimed before it is made and counts from then on. A claim whose holder died runs out and the delivery is due
again: under its one id it is sent until it is taken, or until its tries are used up.
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
from jobs.ledger import paging
from jobs.retries import GiveUp, RetryAt, RetryPolicy, decide

EVENT_TYPES = (
    *(f"batch.{state}" for state in BatchState if state.is_terminal),
    *(f"job.{state}" for state in JobState if state.is_terminal),
)
"""The types of events that a webhook can receive."""
TEST_EVENT = "webhook.test"
SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32
_MOST_WEBHOOKS = 100  # of one project: each event is sent to all of them
_HELD_UP_AT_ONCE = 500  # deliveries of one receiver that is away


@dataclass(frozen=True, slots=True)
class Sending:
    """One try of a delivery, claimed."""

    delivery_id: str
    webhook_id: str
    attempt: int
    """Number of this try, from 1. Its result is recorded only while it is the latest try."""
    url: str
    secret: str = field(repr=False)
    body: str
    """The JSON text that is signed and sent."""
    at: float
    """When the try was claimed, in Unix seconds of the database's clock."""


# -- making and finding --------------------------------------------------------------------------------------------


def create(db: Database, url: str, *, events: Sequence[str], project: str) -> Webhook:
    """Make a webhook, with a secret of its own.

    Args:
        url: checked.
        events: types it wants, of `EVENT_TYPES`; none: all.
        project: whose events it is told.

    Raises:
        Conflict: the project has as many webhooks as it may have.
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
    """The webhook.

    Raises:
        NotFound: there is none of this id.
    """
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        raise NotFound(f"there is no webhook '{webhook_id}'")
    return webhook


def list_webhooks(
    session: Session, *, project: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Webhook], bool]:
    """A page of webhooks, newest first.

    Args:
        project: whose webhooks; None for all.
        after: id of the last webhook of the page before.

    Returns:
        The webhooks, and whether there are more after them.

    Raises:
        NotFound: there is no webhook `after`.
    """
    conditions = [] if project is None else [col(Webhook.project) == project]
    last = None if after is None else get(session, after)
    return paging.page(session, Webhook, *conditions, last=last, limit=limit)


def deliveries(
    session: Session, webhook_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[WebhookDelivery], bool]:
    """A page of a webhook's deliveries, newest first.

    Args:
        after: id of the last delivery of the page before.

    Returns:
        The deliveries, and whether there are more after them.

    Raises:
        NotFound: the webhook has no delivery `after`.
    """
    last = None if after is None else session.get(WebhookDelivery, after)
    if after is not None and (last is None or last.webhook_id != webhook_id):
        raise NotFound(f"webhook {webhook_id} has no delivery '{after}'")
    is_its = col(WebhookDelivery.webhook_id) == webhook_id
    return paging.page(session, WebhookDelivery, is_its, last=last, limit=limit)


def delete(db: Database, webhook_id: str) -> None:
    """Forget a webhook and its deliveries; what is not sent yet never is.

    Raises:
        NotFound: there is no such webhook.
    """
    with db.write() as tx:
        gone = sql_delete(Webhook).where(col(Webhook.id) == webhook_id)
        if not tx.changed(gone):
            raise NotFound(f"there is no webhook '{webhook_id}'")
        # Its row is gone first: that waits for whoever announces something to it now, whose deliveries go as well.
        tx.execute(sql_delete(WebhookDelivery).where(col(WebhookDelivery.webhook_id) == webhook_id))


# -- the way of an event -------------------------------------------------------------------------------------------


def announce(tx: Transaction, event_type: str, subject_id: str, *, project: str) -> None:
    """Write an event down for each webhook of the project that wants it, in the caller's transaction."""
    of_project = select(Webhook).where(col(Webhook.project) == project)
    told = tx.scalars(of_project.with_for_update(read=True, key_share=True)).all()  # nobody deletes them meanwhile
    wanting = [webhook.id for webhook in told if not webhook.events or event_type in webhook.events]
    if wanting:
        _write_down(tx, wanting, event_type, subject_id)


def announce_test(db: Database, webhook_id: str) -> WebhookDelivery:
    """Write a test event down for one webhook, whatever it wants.

    Raises:
        NotFound: there is no such webhook.
    """
    with db.write() as tx:
        locked = select(Webhook).where(col(Webhook.id) == webhook_id).with_for_update(read=True, key_share=True)
        if tx.scalar(locked) is None:
            raise NotFound(f"there is no webhook '{webhook_id}'")
        return _write_down(tx, [webhook_id], TEST_EVENT, webhook_id)[0]


def due(tx: Transaction) -> list[str]:
    """The webhooks with deliveries to be sent now, the one that has waited longest first."""
    is_due = (col(WebhookDelivery.state) == DeliveryState.PENDING, col(WebhookDelivery.not_before) <= tx.now())
    by_webhook = select(col(WebhookDelivery.webhook_id)).where(*is_due).group_by(col(WebhookDelivery.webhook_id))
    return list(tx.scalars(by_webhook.order_by(func.min(WebhookDelivery.not_before))))


def claim(db: Database, webhook_id: str, *, max_attempts: int, claim_seconds: float) -> Sending | None:
    """Take the webhook's delivery that has been due longest; the try counts from now on.

    Args:
        max_attempts: of a delivery. One whose last claim ran out is given up here, since it may be what kills senders.
        claim_seconds: after which, with no outcome recorded, it is due again.

    Returns:
        What is to be sent, or None where nothing is due.
    """
    with db.write() as tx:
        now = tx.time()
        delivery = tx.scalar(_due_of(tx, webhook_id, limit=1))
        while delivery is not None and delivery.attempts >= max_attempts:
            move(delivery, DeliveryState.FAILED)
            delivery.ended_at = now
            delivery.error = f"{delivery.error or 'cut off'} (tried {delivery.attempts} times)"
            tx.flush()
            delivery = tx.scalar(_due_of(tx, webhook_id, limit=1))
        webhook = tx.get(Webhook, webhook_id)
        if delivery is None or webhook is None:  # a webhook may have been deleted just now, its deliveries with it
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
    """End a delivery well.

    Raises:
        Conflict: it was claimed again, or its webhook was deleted.
    """
    with db.write() as tx:
        delivery = _claimed(tx, sending)
        move(delivery, DeliveryState.DELIVERED)
        delivery.ended_at = tx.time()
        delivery.status_code, delivery.error = status_code, None


def record_failed(
    db: Database, sending: Sending, error: StokerError, policy: RetryPolicy, *, status_code: int | None = None
) -> None:
    """Put a delivery whose try failed back for later, or give it up.

    Args:
        error: why it failed.
        policy: how often and how patiently it is tried.
        status_code: of the answer. None: there was none, so the receiver is away, and the try counts for all that is
            due to it: tried one by one, what waits for a dead receiver would pile up without end.

    Raises:
        Conflict: it was claimed again, or its webhook was deleted.
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


# -- what they share -----------------------------------------------------------------------------------------------


def _write_down(tx: Transaction, webhook_ids: Sequence[str], event_type: str, subject_id: str) -> list[WebhookDelivery]:
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
    """Hold the delivery's row while the claim is the latest."""
    claimed = select(WebhookDelivery).where(
        col(WebhookDelivery.id) == sending.delivery_id,
        col(WebhookDelivery.state) == DeliveryState.PENDING,
        col(WebhookDelivery.attempts) == sending.attempt,
    )
    delivery = session.scalar(claimed.with_for_update())
    if delivery is None:
        raise Conflict(f"delivery {sending.delivery_id} is not at its try {sending.attempt} any more")
    return delivery
