"""Arrays of jobs. Lists of jobs leave out the children of arrays, and so do the indexes of these lists."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_LISTS = {
    "jobs_by_age": ["created_at", "id"],
    "jobs_by_state_and_age": ["state", "created_at", "id"],
    "jobs_by_project": ["project", "created_at", "id"],
    "jobs_by_project_and_state": ["project", "state", "created_at", "id"],
}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("parent_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("child_index", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("num_children", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("jobs_by_parent", "jobs", ["parent_id", "child_index"], unique=True)
    op.create_index("jobs_by_family", "jobs", ["parent_id", "state", "child_index"])
    op.create_index("jobs_by_parent_and_age", "jobs", ["parent_id", "created_at", "id"])
    is_no_child = sa.text("parent_id IS NULL")
    for name, columns in _LISTS.items():
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", columns, sqlite_where=is_no_child, postgresql_where=is_no_child)
