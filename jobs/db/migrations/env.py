"""The entry point of Alembic, which runs migrations on the connection that `jobs.db.migrations` passes."""

from alembic import context
from sqlmodel import SQLModel

import jobs.db.tables  # noqa: F401 - fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite cannot alter most columns in place
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
