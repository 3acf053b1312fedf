"""Indexes for state that grows: the queue, lists of jobs by age, deadlines, ends, and the chunks of a lease."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("jobs_by_state", "jobs")
    op.create_index("jobs_by_state", "jobs", ["state", "priority", "created_at", "id"])
    op.create_index("jobs_by_age", "jobs", ["created_at", "id"])
    op.create_index("jobs_by_state_and_age", "jobs", ["state", "created_at", "id"])
    op.create_index("jobs_by_project", "jobs", ["project", "created_at", "id"])
    op.create_index("jobs_by_project_and_state", "jobs", ["project", "state", "created_at", "id"])
    _partial_index("jobs_waiting", "jobs", ["kind", "priority", "created_at", "id"], "state = 'queued'")
    _partial_index("jobs_by_deadline", "jobs", ["deadline_at"], "deadline_at IS NOT NULL AND ended_at IS NULL")
    _partial_index("jobs_by_end", "jobs", ["ended_at"], "ended_at IS NOT NULL")
    op.drop_index("chunks_by_lease", "chunks")
    _partial_index("chunks_by_lease", "chunks", ["lease_id"], "state = 'leased'")


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
