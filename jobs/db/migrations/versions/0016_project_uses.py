"""How much of the slots each project has used, and the waiting jobs of each project in order."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_queued = sa.text("state = 'queued'")
    op.drop_index("jobs_waiting", "jobs")
    columns = ["project", "kind", "priority", "ready_at", "id"]
    op.create_index("jobs_waiting", "jobs", columns, sqlite_where=is_queued, postgresql_where=is_queued)
    op.create_table(
        "project_uses",
        sa.Column("project", sa.String(), primary_key=True),
        sa.Column("num_slots", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
    )
    op.create_table(
        "project_days",
        sa.Column("project", sa.String(), primary_key=True),
        sa.Column("day", sa.String(), primary_key=True),
        sa.Column("slot_seconds", sa.Double(), nullable=False),
    )
