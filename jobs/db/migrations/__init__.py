"""The Alembic migrations of the database schema, which are part of the package."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError

from jobs.db.database import Database

_UPGRADE_LOCK = 0x5706E5  # any constant; only these upgrades use it
_REVISION = text("SELECT version_num FROM alembic_version")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The revision that this version of the code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package contains no migrations")
    return revision


def current(db: Database) -> str | None:
    """The revision of the database; None for an empty one."""
    with db.engine.connect() as connection:
        try:
            revision: str | None = connection.scalar(_REVISION)
        except (OperationalError, ProgrammingError):  # an empty database has no such table
            connection.rollback()
            return MigrationContext.configure(connection).get_current_revision()
        return revision


def upgrade(db: Database, revision: str = "head") -> str:
    """Upgrade the database to a revision, by default the newest. Simultaneous upgrades wait for each other.

    Returns:
        The revision of the database after the upgrade.
    """
    config = _config()
    with db.engine.connect().execution_options(stoker_immediate=True) as connection, connection.begin():
        if not db.is_sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return head() if revision == "head" else revision
