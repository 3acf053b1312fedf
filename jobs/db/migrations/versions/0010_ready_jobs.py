"""When a job is ready, and for which other jobs it waits."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_LIVE = "('validating', 'queued', 'running', 'finalizing', 'cancelling')"


def upgrade() -> None:
    op.create_table(
        "dependencies",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("parent_id", sa.String(), nullable=False),
        sa.Column("condition", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "parent_id"),
    )
    op.create_index("dependencies_by_parent", "dependencies", ["parent_id"])
    op.add_column("jobs", sa.Column("ready_at", sa.Double(), nullable=True))
    op.execute(
        "INSERT INTO dependencies (job_id, parent_id, condition) SELECT jobs.id, parents.id, 'ok' FROM jobs "
        f"JOIN jobs AS parents ON parents.id = jobs.waits_for AND parents.state IN {_LIVE} "
        "WHERE jobs.state = 'validating'"
    )
    op.execute("UPDATE jobs SET ready_at = created_at WHERE id NOT IN (SELECT job_id FROM dependencies)")
    op.drop_column("jobs", "waits_for")
    op.drop_index("jobs_by_state", "jobs")
    op.create_index("jobs_by_state", "jobs", ["state", "priority", "ready_at", "id"])
    op.drop_index("jobs_waiting", "jobs")
    is_queued = sa.text("state = 'queued'")
    columns = ["kind", "priority", "ready_at", "id"]
    op.create_index("jobs_waiting", "jobs", columns, sqlite_where=is_queued, postgresql_where=is_queued)
