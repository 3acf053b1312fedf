"""Routes of webhooks: create, list, retrieve, delete, test, and list their deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from jobs.db.states import DeliveryState
from jobs.db.tables import Webhook, WebhookDelivery
from jobs.errors import UserError
from jobs.ledger.records import webhooks
from jobs.ledger.records.webhooks import EVENT_TYPES
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find, scope_of
from scheduler.api.bodies.request_body import parse_request, read_document
from scheduler.api.context import AfterId, InContext, PageSize, WebhookId
from scheduler.api.errors import error_responses
from scheduler.api.views.lists import Page, bounded_page
from scheduler.control.webhook_sender import LONGEST_URL, check_url

router = APIRouter(
    prefix="/v1/webhooks", tags=["webhooks"], dependencies=[Depends(require_key)], responses=error_responses(400)
)


_MOST_EVENTS = 100


class WebhookRequest(BaseModel):
    """The request body that creates a webhook."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(
        max_length=LONGEST_URL,
        description="An http or https URL; the host must be public unless the operator lists it.",
    )
    events: list[Annotated[str, Field(max_length=100)]] = Field(
        default=[],
        max_length=_MOST_EVENTS,
        description="Event types to send; all types if empty.",
        json_schema_extra={"items": {"type": "string", "enum": list(EVENT_TYPES)}},
    )


class WebhookView(BaseModel):
    """A webhook. Times are Unix seconds."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    events: list[str] = Field(description="Event types that are sent; all types if empty.")
    project: str = Field(description="Project whose events are sent.")
    created_at: float


class NewWebhookView(WebhookView):
    """A webhook that was just created, with its secret."""

    secret: str = Field(description="Secret `whsec_...` for checking signatures. Shown only once.")


class DeletedWebhook(BaseModel):
    """The response to a deletion."""

    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class DeliveryView(BaseModel):
    """The delivery of one event to one webhook. Times are Unix seconds."""

    id: str = Field(description="The `webhook-id` header, the same at each attempt.")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_id: str
    type: str
    event: dict[str, Any] = Field(description="The event as it is sent.")
    state: DeliveryState
    attempts: int = Field(
        description="Attempts so far, including those skipped because the receiver had just been unreachable."
    )
    status_code: int | None = Field(description="HTTP status of the last response; null if there was none.")
    error: str | None = Field(description="Why the last attempt failed.")
    created_at: float
    next_attempt_at: float | None = Field(
        description="Earliest time of the next attempt while the delivery is pending."
    )
    ended_at: float | None


_BODY = {"application/json": {"schema": {"$ref": f"#/components/schemas/{WebhookRequest.__name__}"}}}


@router.post(
    "",
    status_code=201,
    responses=error_responses(408, 409, 413),
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
def create_webhook(
    context: InContext, key: Key, document: Annotated[dict[str, Any], Depends(read_document)]
) -> NewWebhookView:
    """Create a webhook for the key's project. Only this response contains its secret."""
    new = parse_request(WebhookRequest, document, noun="a webhook")
    for event_type in new.events:
        if event_type not in EVENT_TYPES:
            raise UserError(f"events: '{event_type}' is not one of {', '.join(EVENT_TYPES)}", param="events")
    check_url(new.url, context.settings)
    webhook = webhooks.create(context.database, new.url, events=new.events, project=key.project)
    return NewWebhookView(**_webhook_view(webhook).model_dump(), secret=webhook.secret)


@router.get("", responses=error_responses(404))
def list_webhooks(context: InContext, key: Key, after: AfterId = None, limit: PageSize = 20) -> Page[WebhookView]:
    """Webhooks, newest first."""
    with context.database.read() as session:
        if after is not None:
            find(session, Webhook, after, key)
        found, has_more = webhooks.list_webhooks(session, project=scope_of(key), after=after, limit=limit)
    return bounded_page(map(_webhook_view, found), limit, has_more=has_more)


@router.get("/{webhook_id}", responses=error_responses(404))
def get_webhook(context: InContext, key: Key, webhook_id: WebhookId) -> WebhookView:
    """One webhook."""
    with context.database.read() as session:
        return _webhook_view(find(session, Webhook, webhook_id, key))


@router.delete("/{webhook_id}", responses=error_responses(404))
def delete_webhook(context: InContext, key: Key, webhook_id: WebhookId) -> DeletedWebhook:
    """Delete a webhook and its log. Pending deliveries are dropped."""
    with context.database.read() as session:
        find(session, Webhook, webhook_id, key)
    webhooks.delete(context.database, webhook_id)
    return DeletedWebhook(id=webhook_id)


@router.get("/{webhook_id}/deliveries", responses=error_responses(404))
def list_deliveries(
    context: InContext, key: Key, webhook_id: WebhookId, after: AfterId = None, limit: PageSize = 20
) -> Page[DeliveryView]:
    """The delivery log, newest first: deliveries and their outcome."""
    with context.database.read() as session:
        find(session, Webhook, webhook_id, key)
        found, has_more = webhooks.deliveries(session, webhook_id, after=after, limit=limit)
    return bounded_page(map(_delivery_view, found), limit, has_more=has_more)


@router.post("/{webhook_id}/test", status_code=201, responses=error_responses(404))
def send_test(context: InContext, key: Key, webhook_id: WebhookId) -> DeliveryView:
    """Send a `webhook.test` event, even if the webhook does not list this type. The delivery log shows the outcome."""
    with context.database.read() as session:
        find(session, Webhook, webhook_id, key)
    delivery = webhooks.announce_test(context.database, webhook_id)
    context.doorbell.wake()
    return _delivery_view(delivery)


def _webhook_view(webhook: Webhook) -> WebhookView:
    return WebhookView(**webhook.model_dump(exclude={"secret"}))


def _delivery_view(delivery: WebhookDelivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        webhook_id=delivery.webhook_id,
        type=delivery.type,
        event=orjson.loads(delivery.body),
        state=delivery.state,
        attempts=delivery.attempts,
        status_code=delivery.status_code,
        error=delivery.error,
        created_at=delivery.created_at,
        next_attempt_at=delivery.not_before if delivery.state == DeliveryState.PENDING else None,
        ended_at=delivery.ended_at,
    )
