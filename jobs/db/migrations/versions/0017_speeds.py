"""Measured speeds of models and trainings, and what they are measured from."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("workload", sa.JSON(), nullable=True))
    op.add_column("attempts", sa.Column("begun_at", sa.Double(), nullable=True))
    op.add_column("attempts", sa.Column("advanced_at", sa.Double(), nullable=True))
    op.create_table(
        "speeds",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("device_name", sa.Text(), nullable=False),
        sa.Column("num_slots", sa.Integer(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("log_mean", sa.Double(), nullable=False),
        sa.Column("log_variance", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
