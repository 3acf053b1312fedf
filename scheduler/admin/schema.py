"""The database's schema as an operator meets it: looked at without making anything, migrated with clear refusals."""

from __future__ import annotations

from pathlib import Path

from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError

from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import Conflict, ServiceUnavailable
from jobs.messages import first_line


def read_revision(database: Database) -> str | None:
    """The revision that the database is at; None for an empty one or a file that is not there, which stays so.

    Raises:
        ServiceUnavailable: it cannot be read.
    """
    if is_missing(database):
        return None
    try:
        return migrations.current(database)
    except DBAPIError as error:
        raise ServiceUnavailable(f"the database cannot be used: {first_line(error.orig or error)}") from error


def check_schema(database: Database) -> None:
    """Refuse a database that this version cannot work on.

    Raises:
        Conflict: its schema is not the one that this version needs.
        ServiceUnavailable: it cannot be read.
    """
    revision, needed = read_revision(database), migrations.head()
    if revision != needed:
        raise Conflict(
            f"the database's schema is at {revision or 'nothing'}, this version needs {needed}: run `stoker db upgrade`"
        )


def is_missing(database: Database) -> bool:
    """Whether it is a SQLite file that nobody has made yet; connecting would make it."""
    path = database.url.database
    return database.is_sqlite and path is not None and path != ":memory:" and not Path(path).exists()


def migrate(database: Database) -> str:
    """Bring the database to the schema that this version needs. Returns its revision.

    Raises:
        Conflict: a newer version has migrated it further.
        ServiceUnavailable: it cannot be reached or written.
    """
    try:
        return migrations.upgrade(database)
    except CommandError as error:
        raise Conflict(
            f"the database was made by a newer version of Stoker and cannot be used by this one ({error})"
        ) from error
    except DBAPIError as error:
        raise ServiceUnavailable(f"the database cannot be used: {first_line(error.orig or error)}") from error
