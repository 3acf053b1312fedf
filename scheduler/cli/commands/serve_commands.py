"""`stoker up`, `stoker serve` and `stoker worker`: the long-running commands."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jobs.config.settings import Settings
from scheduler.cli.connect import DataDir, load_settings
from scheduler.cli.interrupts import Interrupted, interruptible
from scheduler.cli.terminal import show, show_message, stderr

if TYPE_CHECKING:
    from scheduler.embedded.stack import Stack

Host = Annotated[str | None, typer.Option(help="Address of the API [env: STOKER_HOST; default: 127.0.0.1].")]
Port = Annotated[
    int | None, typer.Option(help="Port of the API; 0 picks a free one [env: STOKER_PORT; default: 8470].")
]
ApiProcesses = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that serve the API [env: STOKER_API_PROCESSES; default: 1]."),
]
Slots = Annotated[
    int | None,
    typer.Option(min=0, help="GPUs to use, or CPU slots on a host without GPUs; 0 uses all [env: STOKER_SLOTS]."),
]


Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="LABEL",
        help="Label of this host, for `needs.labels` of jobs; repeatable [env: STOKER_LABELS].",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("up")(up)
    app.command("serve")(serve)
    app.command("worker")(worker)


def up(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    api_processes: ApiProcesses = None,
    slots: Slots = None,
    labels: Labels = None,
    data_dir: DataDir = None,
) -> None:
    """Run all of Stoker on this machine.

    Starts Redis, the API, the scheduler and the workers. Ctrl-C or SIGTERM stops them in order; a second one kills
    them at once.
    """
    from scheduler.embedded.stack import Stack  # imports the database and the API

    settings = load_settings(
        context,
        host=host,
        port=port,
        api_processes=api_processes,
        slots=slots,
        labels=labels or None,
        data_dir=data_dir,
    )
    stack = Stack(settings)
    try:
        with interruptible(stack.kill_if_stopping), ExitStack() as cleanup:
            with stderr.status("starting Redis, the API and the workers ..."):
                cleanup.enter_context(stack)
            show(f"stoker ready at {stack.url}")
            _wait_for_interrupt(stack)
    except Interrupted:
        return


def _wait_for_interrupt(stack: Stack) -> None:
    try:
        stack.wait()
    except Interrupted:
        show_message("stopping ...")
        raise


def serve(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    api_processes: ApiProcesses = None,
    data_dir: DataDir = None,
) -> None:
    """Run the API and the scheduler, for production."""
    from jobs.db.database import Database
    from scheduler.admin.schema import check_schema

    settings = load_settings(context, host=host, port=port, api_processes=api_processes, data_dir=data_dir)
    database = Database(settings.resolved_database_url)
    try:
        check_schema(database)
    finally:
        database.close()
    _exec_module("scheduler.api.serve", settings)


def worker(context: typer.Context, slots: Slots = None, labels: Labels = None, data_dir: DataDir = None) -> None:
    """Run one worker for each slot of this host, for production."""
    _exec_module("worker.host.main", load_settings(context, slots=slots, labels=labels or None, data_dir=data_dir))


def _exec_module(module: str, settings: Settings) -> NoReturn:
    """Replace this process by a Stoker module, with these settings in its environment."""
    from jobs.child_modules import python_module
    from scheduler.embedded.environment import settings_environment

    sys.stdout.flush()
    sys.stderr.flush()
    argv = python_module(module)
    os.execve(argv[0], argv, {**os.environ, **settings_environment(settings)})
