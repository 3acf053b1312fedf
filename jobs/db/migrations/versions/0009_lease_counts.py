"""What each lease has recorded, apart from its job and its heartbeat."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lease_counts",
        sa.Column("lease_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("num_done", sa.BigInteger(), nullable=False),
        sa.Column("num_failed", sa.BigInteger(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("num_first", sa.BigInteger(), nullable=False),
        sa.Column("is_mixed", sa.Boolean(), nullable=False),
        sa.Column("row_error", sa.JSON(), nullable=True),
        sa.Column("stage_times", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("lease_id"),
    )
    op.create_index("lease_counts_by_job", "lease_counts", ["job_id"])
