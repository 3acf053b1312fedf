"""`stoker cancel` and `stoker retry`: the commands that change a job."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.connect import DataDir, JobId, Json, Url, reach
from scheduler.cli.interrupts import interruptible
from scheduler.cli.progress import summary
from scheduler.cli.terminal import say, show, show_json
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
    """Ask a job to stop. What it has finished stays readable."""
    with interruptible(), reach(context, url, data_dir, waits=wait) as client:
        asked = client.cancel(job)
        if wait:
            asked = client.wait(job)
    if as_json:
        show_json(asked)
    else:
        say(summary(asked) if wait else f"{asked['id']} {asked['state']}")


def retry(
    context: typer.Context,
    job: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the new job has ended.")] = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Submit an ended job again; print the new one's id.

    A job that has completed is not retried. While the new job has not ended, the same command prints its id again.
    """
    with interruptible(), reach(context, url, data_dir, waits=wait) as client:
        new_id = str(client.retry(job)["id"])
        show(new_id)
        if wait:
            check_completed(wait_for(client, new_id), blame_user=False)
