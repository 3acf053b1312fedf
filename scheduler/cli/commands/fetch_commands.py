"""`stoker results` and `stoker artifacts`: the commands that fetch what a job produced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.messages import counted
from scheduler.cli.connect import DataDir, JobId, Json, Url, connect
from scheduler.cli.interrupts import interruptible
from scheduler.cli.outputs import check_output, show_results, write_results
from scheduler.cli.terminal import age, cell, make_table, short_bytes, show_json, show_message, show_table
from scheduler.client import connection
from scheduler.client.artifact_files import fetch_artifacts
from scheduler.client.http_client import StokerClient


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("results")(results)
    app.command("artifacts")(artifacts)


def results(
    context: typer.Context,
    job: JobId,
    output: Annotated[Path | None, typer.Option(help="Result file that ends in .jsonl, .parquet or .csv.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows to print.")] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Fetch a job's results in row order.

    If the job still runs, these are the results recorded so far.

    With --output, the results go to that file. Without it, they go to standard output: as JSON lines, or on a terminal
    as a table of the first rows.
    """
    if output is not None:
        check_output(output)
    with interruptible(), connect(context, url, data_dir, waits=True) as client:
        found = client.job(job)
        if output is not None:
            write_results(client, job, output)
        else:
            show_results(client, found, as_lines=as_json, limit=limit)


def artifacts(
    context: typer.Context,
    job: JobId,
    output: Annotated[Path | None, typer.Option(help="Folder to download to. It is created if missing.")] = None,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """List the files that a job produced, or download them."""
    with interruptible(), connect(context, url, data_dir, waits=True) as client:
        found = client.artifacts(job)
        if output is not None:
            _fetch(client, job, found, output)
        elif as_json:
            show_json(found)
        elif found:
            table = make_table(
                ("name", {"no_wrap": False, "overflow": "fold"}), ("size", {"justify": "right"}), "sha256", "age"
            )
            for each in found:
                size = short_bytes(each["bytes"])
                table.add_row(cell(each["name"]), size, cell(each["sha256"][:16]), age(each["created_at"]))
            show_table(table)
        else:
            show_message("this job has no artifacts")


def _fetch(client: StokerClient, job_id: str, found: list[connection.Json], folder: Path) -> None:
    for artifact, _ in fetch_artifacts(client, job_id, found, folder):
        show_message(f"{artifact['name']} ({short_bytes(artifact['bytes'])})")
    if found:
        num_bytes = sum(each["bytes"] for each in found)
        show_message(f"{counted(len(found), 'artifact')} written to {folder} ({short_bytes(num_bytes)})")
    else:
        show_message("this job has no artifacts")
