"""`stoker cancel` and `stoker retry`: the commands that change a job."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.connect import DataDir, JobId, Json, Url, connect
from scheduler.cli.interrupts import interruptible
from scheduler.cli.progress import summary
from scheduler.cli.terminal import show, show_json, show_message
from scheduler.cli.wait import check_completed, wait_for


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("cancel")(cancel)
    app.command("retry")(retry)


def cancel(
    context: typer.Context,
    job: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    as_json: Json = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel a job. Results recorded so far stay readable."""
    with interruptible(), connect(context, url, data_dir, waits=wait) as client:
        found = client.cancel(job)
        if wait:
            found = client.wait(job)
    if as_json:
        show_json(found)
    else:
        show_message(summary(found) if wait else f"{found['id']} {found['state']}")


def retry(
    context: typer.Context,
    job: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the new job has ended.")] = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Submit an ended job again as a new job, and print its id.

    A completed job cannot be retried. Until the new job has ended, the same command prints its id again.
    """
    with interruptible(), connect(context, url, data_dir, waits=wait) as client:
        new_id = str(client.retry(job)["id"])
        show(new_id)
        if wait:
            check_completed(wait_for(client, new_id), blame_user=False)
