"""Sweeps that end trials early: what was compared at which step, and which trials ended."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pruned_step", sa.BigInteger(), nullable=True))
    op.create_table(
        "rungs",
        sa.Column("sweep_id", sa.String(), primary_key=True),
        sa.Column("step", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("job_id", sa.String(), primary_key=True),
        sa.Column("value", sa.Double(), nullable=True),
    )
    op.create_index("rungs_by_job", "rungs", ["job_id", "step"])
