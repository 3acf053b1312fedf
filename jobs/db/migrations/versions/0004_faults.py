"""Pins, limits of row errors, activities of runners, notices, and which rows of a model may share a batch."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pins", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("max_row_errors", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("num_first", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("is_mixed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("row_error", sa.JSON(), nullable=True))
    op.create_index("jobs_by_retried", "jobs", ["retry_of"])
    op.create_index("jobs_by_model", "jobs", ["project", "model_key"])
    op.add_column("leases", sa.Column("activity", sa.Text(), nullable=True))
    op.add_column("leases", sa.Column("activity_at", sa.Double(), nullable=True))
    op.create_table(
        "padding_verdicts",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("device_name", sa.String(), nullable=False),
        sa.Column("padding", sa.String(), nullable=False),
        sa.Column("model_key", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task", "fingerprint", "device_name"),
    )
    op.create_table(
        "notices",
        sa.Column("job_id", sa.String(), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "code"),
    )
