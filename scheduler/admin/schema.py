"""The database's schema for operators: inspect it without creating anything, and migrate it."""

from __future__ import annotations

from pathlib import Path

from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError

from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import Conflict, ServiceUnavailable
from jobs.messages import first_line


def read_revision(database: Database) -> str | None:
    """Return the database's revision; None if it is empty or its file does not exist (the file is not created).

    Raises:
        ServiceUnavailable: The database cannot be read.
    """
    if is_missing(database):
        return None
    try:
        return migrations.current(database)
    except DBAPIError as error:
        raise ServiceUnavailable(f"the database cannot be used: {first_line(error.orig or error)}") from error


def check_schema(database: Database) -> None:
    """Reject a database that this version cannot use.

    Raises:
        Conflict: Its schema is not the one that this version needs.
        ServiceUnavailable: The database cannot be read.
    """
    revision, needed = read_revision(database), migrations.head()
    if revision != needed:
        raise Conflict(
            f"the database has the schema revision {revision or 'none'}, but this version needs {needed}; "
            "run `stoker db upgrade`"
        )


def is_missing(database: Database) -> bool:
    """Whether the database is a SQLite file that does not exist yet; connecting would create it."""
    path = database.url.database
    return database.is_sqlite and path is not None and path != ":memory:" and not Path(path).exists()


def migrate(database: Database) -> str:
    """Migrate the database to the schema that this version needs. Returns the revision.

    Raises:
        Conflict: A newer version has migrated it further.
        ServiceUnavailable: The database cannot be reached or written.
    """
    try:
        return migrations.upgrade(database)
    except CommandError as error:
        raise Conflict(f"a newer version of Stoker has migrated the database; use that version ({error})") from error
    except DBAPIError as error:
        raise ServiceUnavailable(f"the database cannot be used: {first_line(error.orig or error)}") from error
