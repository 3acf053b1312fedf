"""`stoker up`, `stoker serve` and `stoker worker`: the long-running commands."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import Annotated, NoReturn

import typer

from jobs.config.settings import Settings
from scheduler.cli.connect import DataDir, load_settings
from scheduler.cli.interrupts import Interrupted, interruptible
from scheduler.cli.terminal import say, show, stderr

Host = Annotated[str | None, typer.Option(help="Address of the API [env: STOKER_HOST; default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="Port of the API, 0 for a free one [env: STOKER_PORT; default: 8470].")]
Slots = Annotated[
    int | None,
    typer.Option(min=0, help="CPU slots where there is no GPU, or the most GPUs; 0: all [env: STOKER_SLOTS]."),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("up")(up)
    app.command("serve")(serve)
    app.command("worker")(worker)


def up(
    context: typer.Context, host: Host = None, port: Port = None, slots: Slots = None, data_dir: DataDir = None
) -> None:
    """Run Redis, API, scheduler and workers on this machine.

    Ends in order at Ctrl-C or SIGTERM; a second one ends it at once.
    """
    from scheduler.embedded.stack import Stack  # imports the database and the API

    settings = load_settings(context, host=host, port=port, slots=slots, data_dir=data_dir)
    stack = Stack(settings)
    try:
        with interruptible(stack.hurry), ExitStack() as cleanup:
            with stderr.status("starting Redis, API and workers ..."):
                cleanup.enter_context(stack)
            show(f"stoker ready at {stack.url}")
            _await_interrupt()
    except Interrupted:
        return


def _await_interrupt() -> None:
    try:
        while True:
            signal.pause()
    except Interrupted:
        say("stopping ...")
        raise


def serve(context: typer.Context, host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Run the API and the scheduler (production)."""
    from jobs.db.database import Database
    from scheduler.admin.schema import check_schema

    settings = load_settings(context, host=host, port=port, data_dir=data_dir)
    database = Database(settings.resolved_database_url)
    try:
        check_schema(database)
    finally:
        database.close()
    _become("scheduler.api.serve", settings)


def worker(context: typer.Context, slots: Slots = None, data_dir: DataDir = None) -> None:
    """Run one worker for each slot of this host (production)."""
    _become("worker.host.main", load_settings(context, slots=slots, data_dir=data_dir))


def _become(module: str, settings: Settings) -> NoReturn:
    """Replace this process by a Stoker module, with these settings in its environment."""
    from jobs.child_modules import python_module
    from scheduler.embedded.environment import settings_environment

    sys.stdout.flush()
    sys.stderr.flush()
    argv = python_module(module)
    os.execve(argv[0], argv, {**os.environ, **settings_environment(settings)})
