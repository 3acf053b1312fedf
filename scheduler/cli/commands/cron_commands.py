"""`stoker cron`: add, list and remove specs that are submitted at regular times."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from jobs.errors import NotFound, UserError
from scheduler.cli.connect import DataDir, Json, Url, connect
from scheduler.cli.interrupts import interruptible
from scheduler.cli.spec_documents import read_spec
from scheduler.cli.terminal import cell, make_table, show, show_json, show_message, show_table
from scheduler.client.training_paths import adapt_spec

_cron = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Submit a spec at regular times.")

_FOLDED = {"no_wrap": False, "overflow": "fold"}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(_cron, name="cron")


@_cron.command("add")
def add_cron(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the entry.")],
    schedule: Annotated[
        str, typer.Argument(metavar="SCHEDULE", help="Cron expression in quotes, such as '0 7 * * 1-5'.")
    ],
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Spec file in YAML or JSON, or - for standard input.")],
    timezone: Annotated[str, typer.Option(metavar="NAME", help="Time zone, such as Europe/Zurich.")] = "UTC",
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Submit a spec at regular times. Print the id of the new entry."""
    document = read_spec(spec)
    with interruptible(), connect(context, url, data_dir) as client:
        made = client.add_cron(name, schedule, adapt_spec(document, client), timezone=timezone)
    if as_json:
        show_json(made)
        return
    show_message(f"'{name}' fires next at {_local(made['next_at'])}")
    show(made["id"])


@_cron.command("list")
def list_crons(context: typer.Context, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """List the entries with their next time and their last job."""
    with interruptible(), connect(context, url, data_dir) as client:
        found = list(client.crons())
    if as_json:
        show_json(found)
        return
    if not found:
        show_message("no cron entries yet")
        return
    table = make_table("name", ("schedule", _FOLDED), "next", ("last job", _FOLDED), ("error", _FOLDED))
    for entry in found:
        table.add_row(
            cell(entry["name"]),
            cell(f"{entry['schedule']} {entry['timezone']}"),
            cell(_local(entry["next_at"])),
            cell(entry["last_job_id"] or ""),
            cell(entry["last_error"] or ""),
        )
    show_table(table)


@_cron.command("remove")
def remove_cron(
    context: typer.Context,
    entry: Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the entry.")],
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Remove an entry. Its jobs are not changed."""
    with interruptible(), connect(context, url, data_dir) as client:
        ids = [each["id"] for each in client.crons() if entry in (each["id"], each["name"])]
        if not ids:
            raise NotFound(f"there is no cron entry '{entry}'")
        if len(ids) > 1:
            raise UserError(f"several projects have a cron entry '{entry}'; name one by its id: {', '.join(ids)}")
        client.remove_cron(ids[0])
    show_message(f"{entry} removed")


def _local(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")
