"""`stoker submit`: submit the spec in a file, and print only the job's id to standard output."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.connect import DataDir, Url, connect
from scheduler.cli.interrupts import interruptible
from scheduler.cli.spec_documents import read_spec
from scheduler.cli.terminal import show
from scheduler.cli.wait import check_completed, wait_for
from scheduler.client.training_paths import adapt_spec


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("submit")(submit)


def submit(
    context: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Spec file in YAML or JSON, or - for standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Submit the job that a spec file describes, and print its id.

    Relative paths in the file start at the working directory. Ctrl-C during --wait leaves the job running.
    """
    document = read_spec(spec)
    with interruptible(), connect(context, url, data_dir, waits=True) as client:
        job_id = str(client.submit(adapt_spec(document, client))["id"])
        show(job_id)
        if wait:
            check_completed(wait_for(client, job_id), blame_user=True)
