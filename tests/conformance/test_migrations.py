"""Migrations make exactly the tables that the code describes, on both databases."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from jobs import migrations
from jobs.database import Database


def test_the_migrated_schema_is_the_one_of_the_tables(database: Database) -> None:
    """A column that only the code knows fails at its first use, at a user's."""
    assert migrations.current(database) == migrations.head()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
