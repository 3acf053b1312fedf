"""`stoker doctor`, `stoker keys` and `stoker db`: the operator's commands, which access the database directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.config.projects import OPERATOR
from scheduler.cli.connect import DataDir, Json, Url, load_settings
from scheduler.cli.terminal import age, cell, make_table, show, show_json, show_message, show_table, state_cell
from scheduler.embedded.data_dir import is_running

if TYPE_CHECKING:
    from jobs.db.database import Database

_keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create, list and revoke API keys.")
_db = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and migrate the database's schema.")


_ROOTS = {"input_roots", "output_roots"}
"""Settings that `stoker up` sets to `/` by default."""
_FOLDED = {"no_wrap": False, "overflow": "fold"}


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("doctor")(doctor)
    app.add_typer(_keys, name="keys")
    app.add_typer(_db, name="db")


def doctor(context: typer.Context, as_json: Json = False, url: Url = None, data_dir: DataDir = None) -> None:
    """Check what Stoker needs, and say how to fix problems.

    The exit code is 1 if a check fails.
    """
    from scheduler.embedded.api_address import find_key, find_url
    from scheduler.embedded.doctor import diagnose

    settings = load_settings(context, url=url, data_dir=data_dir)
    api_url = find_url(settings)
    findings = diagnose(settings, api_url=api_url, api_key=find_key(settings, api_url))
    if as_json:
        show_json([finding.to_json() for finding in findings])
    else:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            text = cell(finding.message)
            if finding.remedy:
                text.append(f"\n-> {finding.remedy}", style="bold")
            table.add_row(state_cell(finding.verdict), finding.name, text)
        show_table(table)
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


@_keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, shown in lists.")],
    project: Annotated[
        str, typer.Option(help="Project that the key belongs to. It sees this project only; 'default' sees all.")
    ] = "default",
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Create an API key and print it. It cannot be shown again."""
    from scheduler.admin import keys as api_keys

    with _database(context, data_dir) as database:
        made = api_keys.create_key(database, name, project=project)
    settings = load_settings(context, data_dir=data_dir)
    if made.project != OPERATOR and is_running(settings.data_dir) and not settings.model_fields_set >= _ROOTS:
        from scheduler.embedded.stack import open_roots_warning

        show_message(f"warning: {open_roots_warning([made.project])}")
    if as_json:
        show_json({"id": made.id, "name": made.name, "project": made.project, "key": made.secret})
        return
    show_message(f"{made.id} created; store the key, it cannot be shown again")
    show(made.secret)


@_keys.command("list")
def list_keys(context: typer.Context, as_json: Json = False, data_dir: DataDir = None) -> None:
    """List the API keys, without their secrets."""
    from scheduler.admin import keys as api_keys

    with _database(context, data_dir) as database:
        keys = api_keys.list_keys(database)
    if as_json:
        fields = {"id", "name", "project", "created_at", "revoked_at"}
        show_json([key.model_dump(include=fields) for key in keys])
        return
    table = make_table("id", ("name", _FOLDED), ("project", _FOLDED), "age", "state")
    for key in keys:
        state = "live" if key.revoked_at is None else "revoked"
        table.add_row(cell(key.id), cell(key.name), cell(key.project), age(key.created_at), state)
    show_table(table)


@_keys.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke an API key. Within about a second, requests with it are refused."""
    from scheduler.admin import keys as api_keys

    with _database(context, data_dir) as database:
        api_keys.revoke_key(database, key_id)
    show_message(f"{key_id} revoked")


@_db.command("upgrade")
def upgrade_database(context: typer.Context, data_dir: DataDir = None) -> None:
    """Migrate the database to this version. Print the schema's revision."""
    from jobs.config.private_files import make_database_file, make_private
    from scheduler.admin.schema import migrate
    from scheduler.embedded.data_dir import make_data_dir

    settings = load_settings(context, data_dir=data_dir)
    if not settings.database_url:
        make_data_dir(settings.data_dir)
        make_private(settings)
        make_database_file(settings)
    with _database(context, data_dir, migrated=False) as database:
        show(migrate(database))


@_db.command("current")
def show_revision(context: typer.Context, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Print the revision of the database's schema.

    The exit code is 1 if this version needs another revision.
    """
    from jobs.db import migrations
    from scheduler.admin.schema import read_revision

    with _database(context, data_dir, migrated=False) as database:
        revision, needed = read_revision(database), migrations.head()
    if as_json:
        show_json({"current": revision, "needed": needed})
    else:
        show(revision or "none")
    if revision != needed:
        if not as_json:
            show_message(f"this version needs revision {needed}: run `stoker db upgrade`")
        raise typer.Exit(1)


@contextmanager
def _database(context: typer.Context, data_dir: DataDir, *, migrated: bool = True) -> Iterator[Database]:
    """Open the database of the settings. With `migrated`, its schema must be current."""
    from jobs.db.database import Database
    from scheduler.admin.schema import check_schema

    database = Database(load_settings(context, data_dir=data_dir).resolved_database_url)
    try:
        if migrated:
            check_schema(database)
        yield database
    finally:
        database.close()
