"""`stoker webhooks`: create, list, test and delete webhooks, and show their deliveries."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.connect import DataDir, Json, Url, connect
from scheduler.cli.interrupts import interruptible
from scheduler.cli.terminal import age, cell, make_table, show, show_json, show_message, show_table, state_cell
from scheduler.client import connection

_webhooks = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Send events to a URL, and see their deliveries."
)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Id of the webhook.")]

_FOLDED = {"no_wrap": False, "overflow": "fold"}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(_webhooks, name="webhooks")


@_webhooks.command("create")
def create_webhook(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="URL", help="URL that receives the events.")],
    event: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Event type, such as batch.completed. May be repeated. Default: all types."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Create a webhook and print its secret. The secret cannot be shown again."""
    with interruptible(), connect(context, url, data_dir) as client:
        made = client.create_webhook(target, events=event or ())
    if as_json:
        show_json(made)
        return
    show_message(f"{made['id']} created; store the secret, it cannot be shown again")
    show(made["secret"])


@_webhooks.command("list")
def list_webhooks(context: typer.Context, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """List the webhooks, without their secrets."""
    with interruptible(), connect(context, url, data_dir) as client:
        found = list(client.webhooks())
    if as_json:
        show_json(found)
        return
    if not found:
        show_message("no webhooks yet")
        return
    table = make_table("id", ("url", _FOLDED), ("events", _FOLDED), "age")
    for webhook in found:
        events = ", ".join(webhook["events"]) or "all"
        table.add_row(cell(webhook["id"]), cell(webhook["url"]), cell(events), age(webhook["created_at"]))
    show_table(table)


@_webhooks.command("delete")
def delete_webhook(context: typer.Context, webhook_id: WebhookId, url: Url = None, data_dir: DataDir = None) -> None:
    """Delete a webhook and its delivery log. Events not sent yet are dropped."""
    with interruptible(), connect(context, url, data_dir) as client:
        client.delete_webhook(webhook_id)
    show_message(f"{webhook_id} deleted")


@_webhooks.command("test")
def send_test(
    context: typer.Context, webhook_id: WebhookId, as_json: Json = False, url: Url = None, data_dir: DataDir = None
) -> None:
    """Send a webhook.test event. The delivery log shows the outcome."""
    with interruptible(), connect(context, url, data_dir) as client:
        delivery = client.test_webhook(webhook_id)
    if as_json:
        show_json(delivery)
    else:
        show_message(f"{delivery['id']} is queued; see `stoker webhooks log {webhook_id}`")


@_webhooks.command("log")
def show_log(
    context: typer.Context,
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of deliveries to show.")] = 20,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show a webhook's latest deliveries and their outcome."""
    with interruptible(), connect(context, url, data_dir) as client:
        found = list(client.deliveries(webhook_id, limit=limit))
    if as_json:
        show_json(found)
        return
    if not found:
        show_message("no deliveries yet")
        return
    table = make_table(
        "age", "event", ("object", _FOLDED), "state", ("tries", {"justify": "right"}), ("result", _FOLDED)
    )
    for delivery in found:
        table.add_row(
            age(delivery["created_at"]),
            cell(delivery["type"]),
            cell(delivery["event"]["data"]["id"]),
            state_cell(delivery["state"]),
            str(delivery["attempts"]),
            cell(_last_try(delivery)),
        )
    show_table(table)


def _last_try(delivery: connection.Json) -> str:
    """The error or HTTP status of the last try, or an empty string."""
    return str(delivery["error"] or delivery["status_code"] or "")
