"""`stoker webhooks`: create, list, test and delete webhooks, and show their deliveries."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.connect import DataDir, Json, Url, reach
from scheduler.cli.interrupts import interruptible
from scheduler.cli.terminal import age, cell, make_table, say, show, show_json, show_table, state_cell
from scheduler.client import connection

_webhooks = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Tell a URL of what happens, and see how that went."
)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]

_FOLDED = {"no_wrap": False, "overflow": "fold"}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(_webhooks, name="webhooks")


@_webhooks.command("create")
def create_webhook(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="URL", help="The URL that is told.")],
    event: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="An event, such as batch.completed; all if absent.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Make a webhook; print its secret. This is the one time it can be seen."""
    with interruptible(), reach(context, url, data_dir) as client:
        made = client.create_webhook(target, events=event or ())
    if as_json:
        show_json(made)
        return
    say(f"{made['id']} made; keep the secret, it cannot be shown again")
    show(made["secret"])


@_webhooks.command("list")
def list_webhooks(context: typer.Context, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """List the webhooks, without their secrets."""
    with interruptible(), reach(context, url, data_dir) as client:
        found = list(client.webhooks())
    if as_json:
        show_json(found)
        return
    if not found:
        say("no webhooks yet")
        return
    table = make_table("id", ("url", _FOLDED), ("events", _FOLDED), "age")
    for webhook in found:
        events = ", ".join(webhook["events"]) or "all"
        table.add_row(cell(webhook["id"]), cell(webhook["url"]), cell(events), age(webhook["created_at"]))
    show_table(table)


@_webhooks.command("delete")
def delete_webhook(context: typer.Context, webhook_id: WebhookId, url: Url = None, data_dir: DataDir = None) -> None:
    """Delete a webhook and its log; what is not sent yet never is."""
    with interruptible(), reach(context, url, data_dir) as client:
        client.delete_webhook(webhook_id)
    say(f"{webhook_id} deleted")


@_webhooks.command("test")
def send_test(
    context: typer.Context, webhook_id: WebhookId, as_json: Json = False, url: Url = None, data_dir: DataDir = None
) -> None:
    """Send a webhook.test event; the log says what came of it."""
    with interruptible(), reach(context, url, data_dir) as client:
        delivery = client.test_webhook(webhook_id)
    if as_json:
        show_json(delivery)
    else:
        say(f"{delivery['id']} is on its way")


@_webhooks.command("log")
def show_log(
    context: typer.Context,
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the latest deliveries.")] = 20,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show a webhook's latest deliveries, and what came of each."""
    with interruptible(), reach(context, url, data_dir) as client:
        found = list(client.deliveries(webhook_id, limit=limit))
    if as_json:
        show_json(found)
        return
    if not found:
        say("nothing was to be sent yet")
        return
    table = make_table("age", "event", ("about", _FOLDED), "state", ("tries", {"justify": "right"}), ("last", _FOLDED))
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
