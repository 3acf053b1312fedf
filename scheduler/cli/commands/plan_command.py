"""`stoker plan`: say what would happen to a job if it were submitted now."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from jobs.messages import counted
from jobs.specs.inference import TRAINING
from scheduler.cli.connect import DataDir, Json, Url, connect
from scheduler.cli.forecast_text import clock, forecast_text
from scheduler.cli.interrupts import interruptible
from scheduler.cli.spec_documents import read_spec
from scheduler.cli.terminal import cell, make_table, short_duration, show_json, show_message, show_table, stdout
from scheduler.client import connection
from scheduler.client.training_paths import adapt_spec

_SHOWN_DELAYS = 10
_SHOWN_CHANGES = 12


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("plan")(plan)


def plan(
    context: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Spec file in YAML or JSON, or - for standard input.")],
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show when a job would start and end if it were submitted now, and which jobs it would delay.

    The spec is checked as by `stoker submit`. Nothing is changed, and no file is uploaded.
    """
    document = read_spec(spec)
    with interruptible(), connect(context, url, data_dir) as client:
        if client.shares_files():  # else paths would be uploaded
            document = adapt_spec(document, client)
        found = client.plan(document)
    if as_json:
        show_json(found)
        return
    noun = "step" if document.get("kind") == TRAINING else "row"
    _show_plan(found, noun)


def _show_plan(found: connection.Json, noun: str) -> None:
    forecast = found["forecast"]
    chunks = "" if found["chunks"] is None else f" in {counted(found['chunks'], 'chunk')}"
    facts = [
        (f"{noun}s", "unknown" if found["total"] is None else f"{found['total']:,}{chunks}"),
        ("starts", forecast_text(forecast["start"]) or "unknown"),
        ("ends", forecast_text(forecast["end"]) or "unknown: no equal work has been measured yet"),
        ("slots", _changes(found["slots"])),
        ("promise", _promise(found["earliest_promise"])),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold" if stdout.is_terminal else "")
    table.add_column(overflow="fold")
    for label, value in facts:
        if value:
            table.add_row(label, value)
    show_table(table)
    if found["delays"]:
        delays = make_table("delays job", "name", ("by", {"justify": "right"}))
        for each in found["delays"][:_SHOWN_DELAYS]:
            delays.add_row(cell(each["job_id"]), cell(each["name"] or ""), short_duration(each["seconds"]))
        show_table(delays)
    others = len(found["delays"][_SHOWN_DELAYS:]) + found["delays_elsewhere"]
    if others:
        show_message(f"and {counted(others, 'other job')}")


def _promise(earliest: float | None) -> str:
    """The earliest promise that would be taken; empty if there is none."""
    return "" if earliest is None else f"{clock(earliest)} or later would be taken"


def _changes(slots: list[connection.Json]) -> str:
    """Numbers of slots over time; of a long list, the first ones."""
    shown = [f"{each['slots']} from {clock(each['at'])}" for each in slots[:_SHOWN_CHANGES]]
    return ", ".join([*shown, "..."] if len(slots) > _SHOWN_CHANGES else shown)
